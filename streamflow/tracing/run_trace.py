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
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from streamflow.model.trace_context import TRACEPARENT, pack, unpack
from streamflow.workflow.awaitable import active

if TYPE_CHECKING:
    from streamflow.machine.transition import Outcome

HALF = (1 << 64) - 1
KNOWN = 2048
"""Contexts that are kept as they were extracted, which takes longer than starting a span that isn't sampled."""


_ONLY_A_SPAN = trace.set_span_in_context(INVALID_SPAN, Context()).keys()
[_SPAN_KEY] = _ONLY_A_SPAN
_USUAL = {TraceContextTextMapPropagator, W3CBaggagePropagator}
_attach = getattr(otel_context, "_RUNTIME_CONTEXT", otel_context).attach  # the public one calls it, once a step
_new = object.__new__
_UNSAMPLED = frozenset("02468ace")
"""The last digit of a `traceparent` whose span isn't sampled."""
_NO_TRACE_ID, _NO_SPAN_ID = "0" * 32, "0" * 16
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
    `traceparent` and nothing else; then a dropped run has `DroppedTrace` in this place."""

    __slots__ = (
        "_flags",
        "_generation",
        "_own",
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


class DroppedTrace(Context):
    """In the place of the trace of a run that isn't sampled, where that is decided for whatever belongs to it, and of
    the spans of its attempts: the context of their code, which finds the span that was sent, so what it opens is
    dropped, too.

    Most runs are like this where few are sampled, so nothing is hashed, parsed or made before somebody asks for it."""

    dropped = True

    _text: str

    @classmethod
    def of(cls, text: str, context: Context | None = None) -> DroppedTrace:
        """`context`: what the text says, if that is more than a span."""
        if context is None:
            span = _new(_Unsampled)
            span.packed = text
            made = cls({_SPAN_KEY: span})
        else:
            made = cls(context)
        made._text = text
        return made

    def text(self, generation: int = 0) -> str:
        """The same for all generations, and for the process of a step."""
        return self._text

    def enter(self) -> None:
        _attach(self)

    def attach(self) -> object:
        """As `Attempt.attach`."""
        return _attach(self)

    def detach(self, token: object) -> None:
        otel_context.detach(cast("Any", token))

    def end(self, outcome: Outcome | None) -> None:
        pass


class _Unsampled(NonRecordingSpan):
    """A span that another process, or an earlier call, has named by its packed context: read at the first look."""

    packed: str
    _read: SpanContext | None = None

    def get_span_context(self) -> SpanContext:
        if self._read is None:
            self._read = trace.get_current_span(extract(self.packed)).get_span_context()
        return self._read

    def __repr__(self) -> str:
        return f"NonRecordingSpan({self.get_span_context()!r})"


def is_unsampled(text: str) -> bool:
    """Whether the text is a `traceparent` alone, of a span that isn't sampled."""
    return (
        text[-1:] in _UNSAMPLED
        and has_usual_propagators()
        and TRACEPARENT.fullmatch(text) is not None
        and not text.startswith("ff")
        and text[3:35] != _NO_TRACE_ID
        and text[36:52] != _NO_SPAN_ID
    )


def root_text(trace_id: int, flags: str) -> str:
    """The `traceparent` of a run that begins a trace and is dropped: half of the trace's id, which is not 0, is the id
    of its span, which no exporter ever sees, so nothing is hashed for it."""
    digits = f"{trace_id:032x}"
    return f"00-{digits}-{digits[16:]}-{flags}"


def is_own_root(sent: SpanContext, run_id: str, created: int) -> bool:
    """Whether what stands in a run's header was made for the run itself, which has no parent then."""
    if not sent.trace_flags.sampled and sent.span_id == sent.trace_id & HALF:
        return True
    return sent.span_id == derived_span_id(sent.trace_id, run_id, created, 0)


class Silence:
    """In the place of a run's trace, where its code is only replayed."""

    dropped = True

    def enter(self) -> None:
        never = SpanContext(1, 1, is_remote=False)
        otel_context.attach(trace.set_span_in_context(NonRecordingSpan(never), Context()))

    def text(self, generation: int) -> str:
        return ""
