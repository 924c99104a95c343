"""The sinks of `streamflow sink`, one file each: the file and the command have the same name, its class the same with a
capital."""
