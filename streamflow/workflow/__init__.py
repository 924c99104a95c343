"""What workflow code uses: definitions, awaitables, policies.

Must not: drive code, do I/O, read a clock.
"""
