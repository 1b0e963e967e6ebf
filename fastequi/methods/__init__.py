"""A method owns its networks and its loss: forward(batch) -> {"loss": ..., parts}; after_step()."""
