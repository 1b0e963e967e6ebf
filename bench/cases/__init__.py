"""One file per op; each ends in CASES."""
