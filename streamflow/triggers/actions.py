"""What a delivery is for: what the function of a trigger returns.

Owns: the three actions, and doing them, each once for a delivery. Must not: receive, decode. Called by: user code
(makes actions), the receiver and the sandbox (do them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple, cast, overload

import msgspec

from streamflow.client.protocol import AnyClient
from streamflow.client.run import Run
from streamflow.client.with_start import OnEnded
from streamflow.errors import UsageError
from streamflow.workflow.messages import SignalDefinition

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MOST = 1000
"""Actions of one delivery."""


class StartRun(msgspec.Struct, frozen=True):
    """Made by `start`."""

    workflow: Any
    args: tuple[Any, ...]
    id: str | None
    tenant: str


class SignalRun(msgspec.Struct, frozen=True):
    """Made by `signal`."""

    run_id: str
    signal: Any
    value: Any


class SignalWithStart(msgspec.Struct, frozen=True):
    """Made by `signal_with_start`."""

    start: StartRun
    signal: Any
    value: Any
    on_ended: OnEnded


Action = StartRun | SignalRun | SignalWithStart
"""One thing that a delivery is for."""
Actions = Action | Sequence[Action] | None
"""What the function of a trigger returns."""


@overload
def start(
    workflow: Callable[[*Ts], Awaitable[Any]], /, *args: *Ts, id: str | None = None, tenant: str = ""
) -> StartRun: ...
@overload
def start(workflow: str, /, *args: Any, id: str | None = None, tenant: str = "") -> StartRun: ...
def start(
    workflow: Callable[..., Awaitable[Any]] | str, /, *args: Any, id: str | None = None, tenant: str = ""
) -> StartRun:
    """The delivery starts a run: as `client.start`. Without `id`, it is made from the delivery's, so that a delivery
    that comes again finds the run. A run that has the `id` stays as it is.

    >>> return sf.triggers.start(build, push.after, id=f"build-{push.after}")
    """
    return StartRun(workflow, args, id, tenant)


@overload
def signal(run_id: str, signal: SignalDefinition[T], value: T, /) -> SignalRun: ...
@overload
def signal(run_id: str, signal: str | SignalDefinition[None], value: Any = None, /) -> SignalRun: ...
def signal(run_id: str, signal: str | SignalDefinition[Any], value: Any = None, /) -> SignalRun:
    """The delivery is a signal to an open run: as `run.signal`. If there is no such run, or it has ended, the delivery
    is quarantined.

    >>> return sf.triggers.signal(f"order-{paid.order}", "paid", paid.cents)
    """
    return SignalRun(run_id, signal, value)


@overload
def signal_with_start(
    workflow: Callable[[*Ts], Awaitable[Any]],
    /,
    *args: *Ts,
    id: str,
    signal: SignalDefinition[T],
    value: T,
    tenant: str = "",
    on_ended: OnEnded = "new",
) -> SignalWithStart: ...
@overload
def signal_with_start(
    workflow: Callable[[*Ts], Awaitable[Any]],
    /,
    *args: *Ts,
    id: str,
    signal: str | SignalDefinition[None],
    value: Any = None,
    tenant: str = "",
    on_ended: OnEnded = "new",
) -> SignalWithStart: ...
@overload
def signal_with_start(
    workflow: str,
    /,
    *args: Any,
    id: str,
    signal: str | SignalDefinition[Any],
    value: Any = None,
    tenant: str = "",
    on_ended: OnEnded = "new",
) -> SignalWithStart: ...
def signal_with_start(
    workflow: Callable[..., Awaitable[Any]] | str,
    /,
    *args: Any,
    id: str,
    signal: str | SignalDefinition[Any],
    value: Any = None,
    tenant: str = "",
    on_ended: OnEnded = "new",
) -> SignalWithStart:
    """The delivery is a signal to the run of this id, which is started if none is open: as `client.signal_with_start`.

    >>> return sf.triggers.signal_with_start(cart, kim, id=f"cart-{kim}", signal="add", value=item)
    """
    return SignalWithStart(StartRun(workflow, args, id, tenant), signal, value, on_ended)


def checked(trigger: str, returned: Any) -> list[Action]:
    """What a trigger's function has returned, as a list. Raises `UsageError`."""
    actions: list[Any] = [returned]
    if returned is None:
        actions = []
    elif isinstance(returned, list | tuple):
        actions = list(cast("Sequence[Any]", returned))
    for action in actions:
        if not isinstance(action, StartRun | SignalRun | SignalWithStart):
            raise UsageError(
                f"trigger {trigger} returned a {type(action).__name__}: return what sf.triggers.start, signal or "
                "signal_with_start give, a list of these, or None"
            )
    if len(actions) > MOST:
        raise UsageError(f"trigger {trigger} returned {len(actions):,} actions for one delivery: at most {MOST:,}")
    return actions


def digest_of(trigger: str, delivery_id: str, place: int = 0) -> str:
    """24 hex digits by which an action of a delivery is known. `place`: among the actions of the delivery."""
    return hashlib.sha256(f"{trigger}\n{place}\n{delivery_id}".encode(errors="replace")).hexdigest()[:24]


async def do(client: AnyClient, trigger: str, delivery_id: str, actions: Sequence[Action]) -> list[str]:
    """Do what a delivery is for, as far as that wasn't done before. Returns the ids of the runs, in order.

    Raises what the client's methods raise: `StoreError` if it isn't known whether the server has done it.
    """
    runs: list[str] = []
    for place, action in enumerate(actions):
        digest = digest_of(trigger, delivery_id, place)
        key = f"{trigger}:{digest}"
        run: Run[Any]
        match action:
            case StartRun(workflow, args, run_id, tenant):
                run = await client.start(workflow, *args, id=run_id or f"{trigger}-{digest}", tenant=tenant)
            case SignalRun(run_id, signal, value):
                run = client.run(run_id)
                await run.signal(signal, value, idempotency_id=key)
            case SignalWithStart(StartRun(workflow, args, run_id, tenant), signal, value, on_ended):
                run = await client.signal_with_start(
                    workflow,
                    *args,
                    id=run_id or "",
                    signal=signal,
                    value=value,
                    tenant=tenant,
                    on_ended=on_ended,
                    idempotency_id=key,
                )
        runs.append(run.id)
    return runs
