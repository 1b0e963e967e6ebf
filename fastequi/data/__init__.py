"""Images in, view pairs out: sources, the sampler, DALI, the loader."""
