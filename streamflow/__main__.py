"""`python -m streamflow`: the command line."""

from streamflow.edges.cli import main

main()
