"""A finished encoder for use elsewhere: in Python, and as files of other libraries."""
