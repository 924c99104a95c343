"""The commands of `streamflow`, one file each: the file, its function and the command have the same name.

A module here imports what its command needs only when the command runs, so that `--help` and completion stay quick.
What several commands share is in `streamflow/cli/`; no command imports another.
"""
