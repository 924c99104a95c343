"""The panels of the status screen, one file each: lines of a given width from a `NamespaceStatus`.

Must not: arrange panels (`layout.py` does), wrap lines, or show data that hasn't passed `safe`.
"""
