"""`python -m streamflow`: the command line."""

from streamflow.cli import main

if __name__ == "__main__":  # `multiprocessing` loads this module in each process, too
    main()
