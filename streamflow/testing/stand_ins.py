"""What a stubbed child runs in place of its own code.

Owns: the workflow that stands in: a run as all are, which waits for one attempt that the stub serves, and ends as
that has ended. Must not: know which children are stubbed (`stubs.py` does).
Called by: the world, when a parent starts a child.

So a stubbed child is listed, cancelled, waited for and replayed as every run is, and its parent sees no difference.
"""

from __future__ import annotations

from typing import Any

from streamflow.errors import StepFailed
from streamflow.testing.stubs import Stubs
from streamflow.workflow.app import App, Startable, Step, Workflow
from streamflow.workflow.retry import NO_RETRY


def stand_in(definition: Startable, run_id: str, stubs: Stubs) -> App:
    """An app that has only what replaces this workflow or reducer, for one run."""
    step: Step[..., Any] = Step(_nothing, "stub", NO_RETRY)
    step.parameters = definition.parameters
    workflow: Workflow[..., Any] = Workflow(_nothing, definition.name, definition.version)
    workflow.parameters = definition.parameters
    workflow.parks = ()  # what the stub raises is the end of the child, whatever it is

    async def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return await step(*args, **kwargs)
        except StepFailed:
            raise stubs.raised(run_id) from None  # the parent sees the failure of the child, not that of a step of it

    workflow.function = run
    app = App()
    app.workflows[workflow.name] = workflow
    app.steps[step.name] = step
    return app


async def _nothing() -> Any: ...
