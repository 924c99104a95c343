"""A whole streamflow without installing anything: a server of its own, daemons in this process or in a child."""
