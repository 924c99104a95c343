"""The client: starting runs, talking to them, waiting for them, looking at them."""
