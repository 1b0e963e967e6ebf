"""Geometry of frozen features in the field's own terms, from maps of tokens."""
