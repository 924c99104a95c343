"""The server: keys, scripts, connections. The only package that imports redis."""
