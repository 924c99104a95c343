"""What is stored, and in which form: names, codecs, headers, attributes, failures.

Must not: decide, do I/O, read a clock.
"""
