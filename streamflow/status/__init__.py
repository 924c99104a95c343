"""Collecting the status of a namespace, for the screen and for `--json`."""
