"""Spans of OpenTelemetry, where it is in use: `setup.py` decides that, once in a process.

Nothing else in streamflow imports OpenTelemetry, and nothing here is imported where it is not in use, but for `setup`.
"""
