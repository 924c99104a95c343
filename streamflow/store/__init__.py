"""The server: keys, scripts, connections. The only room that imports redis."""
