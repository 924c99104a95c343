"""`python -m streamflow`: the command line."""

from streamflow.cli import main

if __name__ == "__main__":  # the processes of `process=True` steps load this module, too
    main()
