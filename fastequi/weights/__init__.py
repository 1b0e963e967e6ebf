"""Weights of networks, in every layout they are published in, to ours and back."""
