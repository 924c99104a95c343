"""The client: starting runs, sending to them, waiting for results, reading states and histories."""
