"""Loss modules, one per file, named like their function."""
