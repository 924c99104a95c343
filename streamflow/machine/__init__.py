"""How one run makes its decisions: facts in, a transition out.

Deterministic. Must not: do I/O, read a clock, know an event loop.
"""
