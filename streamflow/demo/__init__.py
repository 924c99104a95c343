"""What `streamflow demo` runs and shows."""
