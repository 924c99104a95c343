"""`files`: what is shipped for deployments, for those who have no checkout: systemd, Prometheus, Grafana, Kubernetes.

Owns: its options, and where the files are. Must not: overwrite what somebody has changed.
Called by: the group in `cli`.
"""

from __future__ import annotations

from pathlib import Path

import click

from streamflow.errors import UsageError


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), help="Write them below this directory.")
@click.option("--force", is_flag=True, help="Replace files there that are different.")
def files(names: tuple[str, ...], output: Path | None, force: bool) -> None:
    """List or write files for systemd, Prometheus, Grafana, Kubernetes.

    They are those of this version. A NAME is a file of the list or a directory, such as systemd; without one, all are
    meant. A file in DIR that is different is kept, and nothing is written then, unless --force is given.

    \b
    Example:
      streamflow files prometheus --output /etc/streamflow
    """
    from streamflow.screen.sanitize import safe

    root = shipped()
    chosen = _chosen(root, names)
    if output is None:
        for name in chosen:
            click.echo(name)
        return
    texts = {output / name: (root / name).read_bytes() for name in chosen}
    changed = [path for path, text in texts.items() if path.exists() and not _is(path, text)]
    if changed and not force:
        raise UsageError(f"{changed[0]} exists and is different, nothing was written: use --force, or another --output")
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
        except OSError as error:
            raise UsageError(f"{path} can't be written: {error.strerror}") from error
        click.echo(safe(str(path)))


def _chosen(root: Path, names: tuple[str, ...]) -> list[str]:
    """The files of these names, sorted."""
    known = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    wanted = [name.strip("/") for name in names]
    for name in wanted:
        if not any(file == name or file.startswith(f"{name}/") for file in known):
            first = sorted({file.partition("/")[0] for file in known})
            raise UsageError(f"there is no {name!r}: there are {', '.join(first)}, see `streamflow files`")
    return [file for file in known if not names or any(file == name or file.startswith(f"{name}/") for name in wanted)]


def _is(path: Path, text: bytes) -> bool:
    return path.is_file() and path.read_bytes() == text


def shipped() -> Path:
    """`deploy/` is inside the package in a wheel; an editable install finds it in the checkout."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "deploy", package.parent / "deploy"):
        if (folder / "systemd").is_dir():
            return folder
    raise UsageError(f"the files are missing ({package / 'deploy'}): reinstall streamflowd")
