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
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from streamflow.model.trace_context import TRACEPARENT, pack, unpack
from streamflow.workflow.awaitable import active

KNOWN = 2048
"""Contexts that are kept as they were extracted, which takes longer than starting a span that isn't sampled."""


_ONLY_A_SPAN = trace.set_span_in_context(INVALID_SPAN, Context()).keys()
[_SPAN_KEY] = _ONLY_A_SPAN
_USUAL = {TraceContextTextMapPropagator, W3CBaggagePropagator}
_judged: tuple[object, bool] = (None, False)


def has_usual_propagators() -> bool:
    """Whether a `traceparent` means what W3C says, so that it can be read and written at once, which costs a third to a
    sixth of what going through the propagators does."""
    global _judged
    propagator = propagate.get_global_textmap()
    if propagator is not _judged[0]:  # an application may set another one at any time
        parts = getattr(propagator, "_propagators", ()) if type(propagator) is CompositePropagator else ()
        kinds: set[type[object]] = {type(part) for part in parts}
        _judged = propagator, TraceContextTextMapPropagator in kinds and kinds <= _USUAL
    return _judged[1]


def extract(text: str) -> Context:
    """The context that was packed; an empty one for an empty text, or one that isn't understood."""
    if not text:
        return Context()
    if has_usual_propagators() and (found := TRACEPARENT.fullmatch(text)) is not None:
        trace_id, span_id = int(found.group(1), 16), int(found.group(2), 16)
        sent = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(int(text[-2:], 16)))
        if sent.is_valid and not text.startswith("ff"):  # a version that W3C forbids
            return trace.set_span_in_context(NonRecordingSpan(sent), Context())
        return Context()
    return propagate.extract(unpack(text), context=Context())


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
    `dropped`: the sampler wants no span of this run, nor of what belongs to it. `is_plain`: what is sent of it is a
    `traceparent` and nothing else."""

    __slots__ = (
        "_flags",
        "_generation",
        "_own",
        "_remote",
        "_span_id",
        "_state",
        "_text",
        "begun",
        "created",
        "dropped",
        "is_plain",
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
        self._remote: Context | None = None
        self.is_plain = has_usual_propagators() and not state and parent.keys() <= _ONLY_A_SPAN
        self._of(0)

    def _of(self, generation: int) -> None:
        self._span_id = derived_span_id(self.trace_id, self.run_id, self.created, generation)
        self._own: SpanContext | None = None
        self._generation = generation
        if self.is_plain:
            self._text = f"00-{self.trace_id:032x}-{self._span_id:016x}-{self._flags:02x}"
        else:
            self._text = inject(trace.set_span_in_context(NonRecordingSpan(self.span_context(generation)), self.parent))

    def span_context(self, generation: int) -> SpanContext:
        if generation != self._generation:
            self._of(generation)
        if self._own is None:
            self._own = SpanContext(
                self.trace_id, self._span_id, is_remote=False, trace_flags=self._flags, trace_state=self._state
            )
        return self._own

    def text(self, generation: int) -> str:
        if generation != self._generation:
            self._of(generation)
        return self._text

    def remote(self) -> Context:
        """What others extract from `text`, where that is a `traceparent` alone."""
        if self._remote is None:
            remote = SpanContext(self.trace_id, self._span_id, is_remote=True, trace_flags=self._flags)
            self._remote = Context({_SPAN_KEY: NonRecordingSpan(remote)})
        return self._remote

    def enter(self) -> None:
        if self._remote is not None:  # dropped, so is whatever its code opens
            otel_context.attach(self._remote)
            return
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
