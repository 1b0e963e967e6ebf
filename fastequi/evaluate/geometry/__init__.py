"""Geometry of frozen features in the field's own terms: what `fastequi eval` does with tokens.

Every evaluation is a file of its own, registered in `kinds.py`. It turns the tokens of images into
sums for each image (`figures.py`), for every encoder and baseline (`grids.py`); the frame around it
(`frame.py`) loads encoders, draws tables with intervals and writes the file.
"""
