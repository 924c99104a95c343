"""A daemon owns shards: one file a loop."""
