"""`completion`: print the completion script for a shell.

Owns: the list of shells. Must not: write into the user's files. Called by: the group in `cli`.
"""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for your shell.

    Runs, workflows, queues, and what the workflow of a run declares are completed from the server of --redis or
    STREAMFLOW_REDIS, if it answers within a second.

    \b
    Examples:
      streamflow completion bash >> ~/.bashrc
      streamflow completion zsh >> ~/.zshrc
      streamflow completion fish > ~/.config/fish/completions/streamflow.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "streamflow", "_STREAMFLOW_COMPLETE").source())
