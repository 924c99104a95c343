"""`bench`: measure throughput and latency on this machine.

Owns: finding the benchmarks in a wheel or a checkout. Must not: know their options, or what they measure.
Called by: the group in `cli`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamflow.errors import UsageError

if TYPE_CHECKING:
    from types import ModuleType


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> int:
    """Measure throughput and latency on this machine.

    \b
    Example:
      streamflow bench chain --json
    """
    return _bench_module().main(list(arguments))


def _bench_module() -> ModuleType:
    """`bench/` is inside the package in a wheel; an editable install finds it in the checkout."""
    package = Path(__file__).resolve().parents[2]
    name = "streamflow.bench_suite"
    if (package / "bench_suite" / "__init__.py").is_file():
        return importlib.import_module(name)
    init = package.parent / "bench" / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(init.parent)])
    if not init.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"the benchmarks are missing ({package / 'bench_suite'}): reinstall streamflowd")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
