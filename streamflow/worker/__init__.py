"""A worker runs the steps of queues, and owns no shards."""
