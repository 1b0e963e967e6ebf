"""Figures of frozen features: encoders, pairs, probes, their baselines, and the result files."""
