"""What several test files use: references, batches, small configurations, runs as processes."""
