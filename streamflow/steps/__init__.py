"""Running attempts of steps, in tasks, threads and processes; for daemons and workers."""
