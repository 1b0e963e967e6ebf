"""Scenes that are made: pieces pasted over photographs, whose masks, paths and depths are exact."""
