"""Networks: ViT, attention, heads, decoders; imports no other room but for checks of arguments."""
