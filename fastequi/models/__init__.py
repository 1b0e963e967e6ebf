"""Networks: ViT, attention, heads, decoders. Imports torch alone (xformers in attention.py)."""
