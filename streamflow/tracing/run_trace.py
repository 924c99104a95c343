"""A run's part of a trace: which spans it has, with ids that every process derives alike.

Owns: the ids of a run's spans, and what the run's code finds as the current span. Must not: export spans itself, refer
to a machine (a cycle, which a daemon collects rarely).
Called by: spans (makes them), the machines (`text`, `enter`).

A run may be open for weeks, at one daemon after the other, so its span can't be: it is made when the run ends, by the
daemon that commits that. But the spans of its steps name it as their parent long before. So its id is a hash of what
every daemon knows: the trace, the run, its incarnation, and how often it has continued as new.

The run's header has the context. If a client or a parent has sent it, that one's span is the parent of the run's. If
not, the first daemon has made one of the run itself, and it names the span of the first generation.
"""

from __future__ import annotations

import functools
import hashlib

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from streamflow.model.trace_context import pack, unpack
from streamflow.workflow.awaitable import active

KNOWN = 2048
"""Contexts that are kept as they were extracted, which takes longer than starting a span that isn't sampled."""


def extract(text: str) -> Context:
    """The context that was packed; an empty one for an empty text, or one that isn't understood."""
    return propagate.extract(unpack(text), context=Context()) if text else Context()


extract_again = functools.lru_cache(KNOWN)(extract)
"""As `extract`, for what comes many times: all steps of a run have its context. It is never changed."""


def inject(context: Context) -> str:
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context=context)
    return pack(carrier)


def derived_span_id(trace_id: int, run_id: str, created: int, generation: int) -> int:
    """Never 0, which no span has."""
    digest = hashlib.sha256(f"{trace_id:032x} {run_id}@{created} {generation}".encode()).digest()
    return int.from_bytes(digest[:8], "big") or 1


class RunTrace:
    """`parent` is the context in which the run was started; `begun` when its generation began, ns since 1970.
    `dropped`: the sampler wants no span of this run, nor of what belongs to it."""

    __slots__ = (
        "_flags",
        "_generation",
        "_own",
        "_state",
        "_text",
        "begun",
        "created",
        "dropped",
        "parent",
        "run_id",
        "trace_id",
    )

    def __init__(
        self,
        run_id: str,
        created: int,
        parent: Context,
        trace_id: int,
        flags: TraceFlags,
        state: TraceState | None,
        begun: int,
        *,
        dropped: bool = False,
    ) -> None:
        self.run_id = run_id
        self.created = created
        self.parent = parent
        self.trace_id = trace_id
        self.begun = begun
        self.dropped = dropped
        self._flags = flags
        self._state = state
        self._of(0)

    def _of(self, generation: int) -> None:
        span_id = derived_span_id(self.trace_id, self.run_id, self.created, generation)
        self._own = own = SpanContext(
            self.trace_id, span_id, is_remote=False, trace_flags=self._flags, trace_state=self._state
        )
        self._text = inject(trace.set_span_in_context(NonRecordingSpan(own), self.parent))
        self._generation = generation

    def span_context(self, generation: int) -> SpanContext:
        if generation != self._generation:
            self._of(generation)
        return self._own

    def text(self, generation: int) -> str:
        if generation != self._generation:
            self._of(generation)
        return self._text

    def remote(self) -> Context:
        """What others extract from `text`, where that is a `traceparent` alone."""
        own = self._own
        remote = SpanContext(own.trace_id, own.span_id, is_remote=True, trace_flags=own.trace_flags)
        return trace.set_span_in_context(NonRecordingSpan(remote), Context())

    def enter(self) -> None:
        otel_context.attach(trace.set_span_in_context(_CodeSpan(self), self.parent))


class _CodeSpan(NonRecordingSpan):
    """The current span in the code of a run: the run's own, which is not sampled while the code is replayed. Spans that
    the code opens then are its children, and dropped by every sampler that asks the parent, as the usual ones do."""

    def __init__(self, run: RunTrace) -> None:
        super().__init__(run.span_context(0))
        self._run = run

    def get_span_context(self) -> SpanContext:
        machine = active.get()
        own = self._run.span_context(0 if machine is None else machine.generation)
        return own if machine is None or machine.live else _unsampled(own)


def _unsampled(own: SpanContext) -> SpanContext:
    return SpanContext(own.trace_id, own.span_id, is_remote=False, trace_state=own.trace_state)


class Silence:
    """In the place of a run's trace, where its code is only replayed."""

    def enter(self) -> None:
        never = SpanContext(1, 1, is_remote=False)
        otel_context.attach(trace.set_span_in_context(NonRecordingSpan(never), Context()))

    def text(self, generation: int) -> str:
        return ""
