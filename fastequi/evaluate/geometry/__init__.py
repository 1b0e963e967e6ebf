"""Geometry of frozen features in the field's own terms: one file for each kind of `kinds.py`."""
