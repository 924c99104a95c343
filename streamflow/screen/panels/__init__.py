"""The panels of the live status screen."""
