"""PUBLIC: what a `Client` and a `Sandbox` have in common, for code that works with both.

Owns: the protocol. Must not: be needed at run time by either. Called by: user code; pyright holds both to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, ParamSpec, Protocol, TypeVar, TypeVarTuple, overload

from streamflow.client.listing import RunPage
from streamflow.client.run import Run
from streamflow.client.starting import OnExisting
from streamflow.client.with_start import REMEMBER, OnEnded
from streamflow.model.attributes import Attribute
from streamflow.model.record import Status
from streamflow.workflow.app import Workflow
from streamflow.workflow.messages import QuestionDefinition, SignalDefinition

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A")
Ts = TypeVarTuple("Ts")


class AnyClient(Protocol):
    """A `Client`, or the `Sandbox` of a test: code that starts and finds runs through it need not know which.

    >>> async def order(client: sf.AnyClient, basket: Basket) -> str:
    ...     run = await client.start(checkout, basket)
    ...     return run.id
    """

    @overload
    async def start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str | None = None,
        tenant: str = "",
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        timeout: float | timedelta | None = None,
        on_existing: OnExisting = "existing",
    ) -> Run[R]: ...
    @overload
    async def start(self, workflow: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> Run[R]: ...
    @overload
    async def start(
        self,
        workflow: str,
        /,
        *args: Any,
        id: str | None = None,
        tenant: str = "",
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        timeout: float | timedelta | None = None,
        on_existing: OnExisting = "existing",
    ) -> Run[Any]: ...

    @overload
    async def signal_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str,
        signal: SignalDefinition[T],
        value: T,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Run[R]: ...
    @overload
    async def signal_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str,
        signal: str | SignalDefinition[None],
        value: Any = None,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Run[R]: ...
    @overload
    async def signal_with_start(
        self,
        workflow: str,
        /,
        *args: Any,
        id: str,
        signal: str | SignalDefinition[Any],
        value: Any = None,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Run[Any]: ...

    @overload
    async def ask_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        /,
        *args: *Ts,
        id: str,
        question: QuestionDefinition[T, A],
        value: T,
        timeout: float | timedelta | None = None,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> A: ...
    @overload
    async def ask_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        /,
        *args: *Ts,
        id: str,
        question: str | QuestionDefinition[None, Any],
        value: Any = None,
        timeout: float | timedelta | None = None,
        type: Any = ...,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Any: ...
    @overload
    async def ask_with_start(
        self,
        workflow: str,
        /,
        *args: Any,
        id: str,
        question: str | QuestionDefinition[Any, Any],
        value: Any = None,
        timeout: float | timedelta | None = None,
        type: Any = ...,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Any: ...

    @overload
    def run(self, run_id: str) -> Run[Any]: ...
    @overload
    def run(self, run_id: str, returns: Workflow[..., R]) -> Run[R]: ...
    @overload
    def run(self, run_id: str, returns: type[R]) -> Run[R]: ...

    async def runs(
        self,
        *,
        status: Status | str | None = None,
        workflow: str | None = None,
        tenant: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        error: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        roots: bool = False,
        sort: str | None = None,
        after: str = "",
        limit: int = 20,
        waits: bool = False,
    ) -> RunPage: ...
