"""What is drawn for each image, without a pixel decoded; methods/tir.py warps u to the view v2."""
