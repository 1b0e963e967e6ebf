"""Which images there are: folders, lists, tar shards, IDX files; their headers and classes."""
