"""Loss modules, one per file, named like their function; to add one: kernels/README.md."""
