"""The version, in a module of its own, so that every layer can import it. `pyproject.toml` reads it from here."""

__version__ = "0.1.0"
