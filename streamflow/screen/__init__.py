"""Everything that is drawn on a terminal.

Must not: fetch anything.
"""
