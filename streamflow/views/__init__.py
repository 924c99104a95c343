"""Numbers over all runs: fold, merge, render.

Must not: do I/O, read a clock.
"""
