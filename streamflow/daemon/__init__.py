"""A daemon owns shards: one file for each of its loops."""
