"""What the features know: probes of frozen features, floors beside them, pictures."""
