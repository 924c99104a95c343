"""What is stored and how it is spelt: names, codecs, headers, attributes, failures.

Must not: decide, do I/O, read a clock.
"""
