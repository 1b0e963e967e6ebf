"""Criteria, one per file."""
