"""The commands of `streamflow`."""
