"""The tests: one file for each thing tested, what they share in support/."""
