"""What `streamflow demo --incidents` runs and shows: a namespace in which twelve things are wrong."""
