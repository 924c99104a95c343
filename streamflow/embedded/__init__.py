"""A complete streamflow without set-up: an embedded server, and daemons in this process or in a child process."""
