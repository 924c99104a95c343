"""The spans that streamflow makes: of runs, attempts of steps, waits in queues, messages and a client's calls.

Owns: which spans there are, their names, kinds, attributes, times and parents. Must not: raise, whatever a processor or
exporter of the application does; keep anything of a run (`run_trace.py` does).
Called by: client, owner and its batches, worker, executor.

    start invoice        PRODUCER   in the client
    └─ run invoice       CONSUMER   a generation of a run: made when it ends, by the owner, after that commit
       ├─ wait gpu       INTERNAL   from the entry in the queue until a worker takes it
       ├─ step charge    INTERNAL   an attempt, where it runs
       ├─ signal approve CONSUMER   from its arrival until its run has it; linked to the span of its sender
       └─ run audit      CONSUMER   a child

Names and times of errors follow OpenTelemetry's semantic conventions, what is streamflow's own begins with it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import time
from collections.abc import Generator, Mapping
from typing import Any, cast

import msgspec
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    Span,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from streamflow import events
from streamflow.errors import Failure
from streamflow.events import ENDINGS, AnyEvent, RunContinued, RunRetried, StepRetrying
from streamflow.machine.open_work import WORKER_LOST
from streamflow.machine.run import RunMachine
from streamflow.machine.transition import Outcome
from streamflow.model.record import Header
from streamflow.tracing.run_trace import (
    HALF,
    KNOWN,
    DroppedTrace,
    RunTrace,
    extract,
    extract_again,
    has_usual_propagators,
    inject,
    is_own_root,
    is_unsampled,
    root_text,
)
from streamflow.version import __version__
from streamflow.workflow.actions import StepJob

_log = logging.getLogger("streamflow.tracing")

COMPLAIN_EVERY = 60.0
"""Seconds between two log lines about spans that can't be made."""
NS_PER_MS = 1_000_000
SAMPLED = TraceFlags.SAMPLED
ASKS_THE_PARENT = (
    "remoteParentNotSampled:AlwaysOffSampler,localParentSampled:AlwaysOnSampler,localParentNotSampled:AlwaysOffSampler}"
)
"""How the description ends of a sampler that drops all that belongs to a span that isn't sampled, as the usual ones."""
ALWAYS_OFF = "AlwaysOffSampler"
NEVER = 1 << 64
"""More than half of any trace's id."""
_NOTHING = Context()
_replace = msgspec.structs.replace
RANDOM = 0x02
"""The flag of W3C Trace Context, level 2, that says that the id of the trace is random."""


def tracing_with(provider: trace.TracerProvider) -> Tracing | None:
    """None for a provider that makes no spans."""
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    tracer = provider.get_tracer("streamflow", __version__)
    return None if isinstance(tracer, trace.NoOpTracer) else Tracing(tracer)


class _Ids:
    """An id generator whose next ids can be given to it: in the event loop, which is where the spans of runs are
    made. A tracer of its own has it, because others ask for ids in other threads."""

    def __init__(self, usual: Any) -> None:
        self.usual = usual
        self.trace_id = self.span_id = 0
        self.flags = TraceFlags(SAMPLED | (RANDOM if self.is_trace_id_random() else 0))
        """Of a trace that begins here."""

    def generate_trace_id(self) -> int:
        return self.trace_id or self.usual.generate_trace_id()

    def generate_span_id(self) -> int:
        return self.span_id or self.usual.generate_span_id()

    def is_trace_id_random(self) -> bool:
        return getattr(self.usual, "is_trace_id_random", lambda: False)()


class Attempt:
    """The span of one attempt of a step. `context`: in which its code runs."""

    __slots__ = ("_tracing", "context", "span")

    def __init__(self, tracing: Tracing, span: Span, parent: Context) -> None:
        self._tracing = tracing
        self.span = span
        self.context = trace.set_span_in_context(span, parent)

    def attach(self) -> object:
        """Make it the current one, in this task or thread. Gives what `detach` needs."""
        return otel_context.attach(self.context)

    def detach(self, token: object) -> None:
        otel_context.detach(cast("Any", token))

    def text(self) -> str:
        """For the process that runs it."""
        return inject(self.context)

    def end(self, outcome: Outcome | None) -> None:
        """None: it was stopped, because nothing needs it here any more."""
        with self._tracing.unharmed():
            if outcome is None:
                self.span.set_attribute("streamflow.cancelled", True)
            elif outcome.failure is not None:
                _mark_failed(self.span, outcome.failure)
            self.span.end()


class Tracing:
    """Makes the spans of one process. None of its methods raises."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._sampler: Any = getattr(tracer, "sampler", None)
        self._ids = _Ids(getattr(tracer, "id_generator", None))
        self._own = copy.copy(tracer)
        cast("Any", self._own).id_generator = self._ids
        description = "" if self._sampler is None else str(self._sampler.get_description())
        self._asks_the_parent = description == ALWAYS_OFF or (
            description.startswith("ParentBased{") and description.endswith(ASKS_THE_PARENT)
        )
        """The sampler decides once in a trace; what it has dropped costs nothing more from there on."""
        self._dropped_from = _dropped_from(self._sampler) if self._asks_the_parent else NEVER
        self._root_flags = f"{self._ids.flags & ~SAMPLED:02x}"
        self.dropped: dict[str, DroppedTrace] = {}
        """What runs and attempts have whose sampler wants no span of them, by the packed context that they have."""
        self._complained = -COMPLAIN_EVERY
        self._foreign_ids = False

    @contextlib.contextmanager
    def unharmed(self) -> Generator[None]:
        """What tracing raises is logged, and nobody's trouble."""
        try:
            yield
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_EVERY:
            self._complained = now
            _log.warning("a span could not be made, and everything else goes on: %s: %s", type(error).__name__, error)

    # --- in a client --------------------------------------------------------------------------------------------------

    def calling(self, what: str, **attributes: str | int) -> contextlib.AbstractContextManager[str]:
        """A span around the sending of something by a client; gives the packed context to send with it."""
        return self._call(what, SpanKind.PRODUCER, attributes)

    def asking(self, what: str, **attributes: str | int) -> contextlib.AbstractContextManager[str]:
        """The same, until there is an answer."""
        return self._call(what, SpanKind.CLIENT, attributes)

    @contextlib.contextmanager
    def _call(self, what: str, kind: SpanKind, attributes: Mapping[str, str | int]) -> Generator[str]:
        span, text = self._begin_call(what, kind, attributes)
        failed: Exception | None = None
        try:
            yield text
        except Exception as error:
            failed = error
            raise
        finally:
            with self.unharmed():
                if failed is not None:
                    span.record_exception(failed)
                    span.set_attribute("error.type", type(failed).__qualname__)
                    span.set_status(Status(StatusCode.ERROR, str(failed)))
                span.end()

    def _begin_call(self, what: str, kind: SpanKind, attributes: Mapping[str, str | int]) -> tuple[Span, str]:
        with self.unharmed():
            span = self._tracer.start_span(what, kind=kind, attributes=_named(attributes))
            return span, inject(trace.set_span_in_context(span))
        return INVALID_SPAN, ""

    # --- at the owner of a run ----------------------------------------------------------------------------------------

    def begin(self, run_id: str, header: Header, begun: int = 0) -> tuple[RunTrace | DroppedTrace | None, Header]:
        """The trace of a run with this header, and the header to commit: with the context, if nobody has sent one.
        `begun`: when its generation began (ms), if it is not the first."""
        try:
            text, trace_id = header.trace, 0
            if text:
                if self._asks_the_parent and is_unsampled(text):
                    return self.dropped.get(text) or self._drop(text), header
            elif self._dropped_from != NEVER and has_usual_propagators():
                trace_id = self._ids.usual.generate_trace_id()
                if (trace_id & HALF or NEVER) >= self._dropped_from:
                    text = root_text(trace_id, self._root_flags)
                    return self._drop(text), _replace(header, trace=text)
            run = self._run(run_id, header, (begun or header.created) * NS_PER_MS, trace_id)
            if not text:
                header = _replace(header, trace=run.text(0))
            if run.dropped and run.is_plain:  # else more than the span is in the context
                return self._drop(run.text(0)), header
            return run, header
        except Exception as error:
            self._complain(error)
            return None, header

    def _run(self, run_id: str, header: Header, begun: int, trace_id: int) -> RunTrace:
        """`trace_id`: that of a trace that begins here, if there is one already, else 0."""
        if header.trace:
            parent = extract(header.trace)
            sent = trace.get_current_span(parent).get_span_context()
        else:
            parent, sent = _NOTHING, INVALID_SPAN_CONTEXT
        created = header.created
        if sent.is_valid:
            trace_id = sent.trace_id
            if is_own_root(sent, run_id, created):
                root = trace.set_span_in_context(INVALID_SPAN, parent)
                return RunTrace(run_id, created, root, trace_id, sent.trace_flags, sent.trace_state, begun)
            flags = sent.trace_flags
        else:
            trace_id = trace_id or self._ids.generate_trace_id()
            flags = self._ids.flags
        state = sent.trace_state
        dropped = False
        if self._sampler is not None:  # of a provider that isn't the SDK's it isn't known
            kind, attributes = SpanKind.CONSUMER, _of_run(run_id, header)
            sampled = self._sampler.should_sample(parent, trace_id, f"run {header.workflow}", kind, attributes, ())
            is_recording = sampled.decision.is_recording()
            if not (is_recording and sampled.decision.is_sampled()):
                flags = TraceFlags(flags & ~SAMPLED)
            elif not flags & SAMPLED:
                flags = TraceFlags(flags | SAMPLED)
            state = sampled.trace_state or state
            dropped = self._asks_the_parent and not is_recording
        return RunTrace(run_id, created, parent, trace_id, flags, state, begun, dropped=dropped)

    def _drop(self, text: str, context: Context | None = None) -> DroppedTrace:
        """`context`: what the text says, if that is more than a span."""
        if len(self.dropped) >= KNOWN:
            self.dropped.clear()
        made = self.dropped[text] = DroppedTrace.of(text, context)
        return made

    def _parent(self, text: str) -> Context | DroppedTrace:
        """The context of what a run has sent; or if the sampler drops whatever belongs to it, what to have instead."""
        if not self._asks_the_parent:
            return extract_again(text)
        if is_unsampled(text):
            return self._drop(text)
        parent = extract_again(text)
        sent = trace.get_current_span(parent).get_span_context()
        if sent.is_valid and not sent.trace_flags.sampled:
            return self._drop(text, parent)
        return parent

    def committed(self, machine: RunMachine, header: Header, made: list[AnyEvent]) -> None:
        """The events of one transition of a traced run are committed: make the spans that end with them."""
        run = machine.trace
        if not isinstance(run, RunTrace) or run.dropped:
            return
        with self.unharmed():
            at = machine.at * NS_PER_MS + NS_PER_MS - 1  # the end of that ms: an attempt may have ended in it
            continued = [event for event in made if isinstance(event, RunContinued)]
            generation = machine.generation - len(continued)
            for event in made:
                if isinstance(event, RunContinued):
                    self._end_run(run, header, generation, event, at, again=machine.retried == generation)
                    generation, run.begun = event.generation, at
                elif isinstance(event, RunRetried):
                    run.begun = at
                elif isinstance(event, ENDINGS):
                    self._end_run(run, header, generation, event, at, again=machine.retried == generation)
                elif (
                    isinstance(event, StepRetrying | events.StepFailed)
                    and event.failure.kind == WORKER_LOST
                    and not event.ms
                ):
                    self._lost_attempt(run, header, generation, event, at)

    def _end_run(
        self, run: RunTrace, header: Header, generation: int, event: AnyEvent, at: int, *, again: bool
    ) -> None:
        """`again`: the generation has ended before, with the span that its steps have for a parent, and was retried:
        the span of this end has an id of its own, and names the first one."""
        attributes = _of_run(run.run_id, header)
        links: list[Link] = []
        if generation:
            attributes["streamflow.generation"] = generation
            links.append(Link(run.span_context(generation - 1)))
        own = run.span_context(generation)
        if again:
            links.append(Link(own))
            attributes["streamflow.retried"] = True
        self._ids.trace_id, self._ids.span_id = own.trace_id, 0 if again else own.span_id
        try:
            span = self._own.start_span(
                f"run {header.workflow}", run.parent, SpanKind.CONSUMER, attributes, links, min(run.begun, at)
            )
        finally:
            self._ids.trace_id = self._ids.span_id = 0
        if not again and span.get_span_context().span_id != own.span_id and not self._foreign_ids:
            self._foreign_ids = True
            _log.warning(
                "this TracerProvider chooses the ids of all spans itself: the spans of steps will have no parent in "
                "their trace"
            )
        if isinstance(event, events.RunFailed):
            _mark_failed(span, event.failure)
        status = "continued" if isinstance(event, RunContinued) else header.status
        span.set_attribute("streamflow.status", str(status))
        if isinstance(event, events.RunCancelled) and event.reason:
            span.set_attribute("streamflow.reason", event.reason[:1000])
        span.end(at)

    def _lost_attempt(
        self, run: RunTrace, header: Header, generation: int, event: StepRetrying | events.StepFailed, at: int
    ) -> None:
        """The process that ran it has ended, and its span with it: one without a duration is made in its place."""
        attributes = {
            **_named({"run_id": run.run_id, "workflow": header.workflow}),
            **_named({"step": event.name, "seq": event.seq, "attempt": event.attempt}),
        }
        parent = trace.set_span_in_context(NonRecordingSpan(run.span_context(generation)), run.parent)
        span = self._tracer.start_span(f"step {event.name}", parent, attributes=attributes, start_time=at)
        _mark_failed(span, event.failure)
        span.end(at)

    def received(self, machine: RunMachine, kind: str, name: str, sender: str, arrived_ms: int) -> None:
        """A signal or question was taken into a traced run, and that is committed."""
        run = machine.trace
        if not isinstance(run, RunTrace) or run.dropped:
            return
        with self.unharmed():
            sent = trace.get_current_span(extract(sender)).get_span_context()
            links = [Link(sent)] if sent.is_valid else []
            parent = trace.set_span_in_context(NonRecordingSpan(run.span_context(machine.generation)), run.parent)
            attributes = _named({"run_id": run.run_id, "workflow": machine.workflow, kind: name})
            now = time.time_ns()
            start = min(arrived_ms * NS_PER_MS or now, now)
            self._tracer.start_span(f"{kind} {name}", parent, SpanKind.CONSUMER, attributes, links, start).end(now)

    # --- where steps run ----------------------------------------------------------------------------------------------

    def waited(self, queue: str, run_id: str, job: StepJob, entered_ms: int) -> None:
        """A worker has taken an attempt from its queue. `entered_ms`: when it came there, on the server's clock."""
        if job.trace in self.dropped:
            return
        with self.unharmed():
            parent = self._parent(job.trace)
            if isinstance(parent, DroppedTrace):
                return
            now = time.time_ns()
            start = min(entered_ms * NS_PER_MS or now, now)
            attributes = {
                **_of_attempt(run_id, job),
                "streamflow.queue": queue,
                "messaging.system": "streamflow",
                "messaging.destination.name": queue,
            }
            self._tracer.start_span(f"wait {queue}", parent, attributes=attributes, start_time=start).end(now)

    def attempt(self, run_id: str, job: StepJob) -> Attempt | DroppedTrace | None:
        """An attempt begins here. A caller that has found it in `dropped` already does without."""
        known = self.dropped.get(job.trace)
        if known is not None:
            return known
        with self.unharmed():
            parent = self._parent(job.trace)
            if isinstance(parent, DroppedTrace):
                return parent
            attributes = _of_attempt(run_id, job)
            if job.step.queue:
                attributes["streamflow.queue"] = job.step.queue
            function = job.step.function
            name = getattr(function, "__qualname__", job.step.name)
            attributes["code.function.name"] = f"{function.__module__}.{name}"
            return Attempt(
                self, self._tracer.start_span(f"step {job.step.name}", parent, attributes=attributes), parent
            )
        return None


def _dropped_from(sampler: Any) -> int:
    """How the usual samplers decide about a trace that begins here: it is dropped if the lower half of its id is at
    least this. `NEVER` for others, which may look at what begins it, and for those that drop none."""
    # Asking a sampler takes as long as all the rest of a run that is dropped.
    root = getattr(sampler, "_root", sampler)
    if root.get_description() == ALWAYS_OFF:
        return 0
    by_ratio = getattr(sys.modules.get("opentelemetry.sdk.trace.sampling"), "TraceIdRatioBased", None)
    return root.bound if by_ratio is not None and type(root) is by_ratio else NEVER


def _named(facts: Mapping[str, str | int]) -> dict[str, str | int]:
    return {f"streamflow.{name}": value for name, value in facts.items() if value != ""}


def _of_run(run_id: str, header: Header) -> dict[str, str | int]:
    return _named({"run_id": run_id, "workflow": header.workflow, "tenant": header.tenant})


def _of_attempt(run_id: str, job: StepJob) -> dict[str, str | int]:
    facts = {"run_id": run_id, "workflow": job.workflow, "step": job.step.name, "seq": job.seq, "attempt": job.attempt}
    return _named(facts)


def _mark_failed(span: Span, failure: Failure) -> None:
    """As `Span.record_exception` does it; the exception itself may have happened in another process."""
    span.set_attribute("error.type", failure.kind)
    span.add_event(
        "exception",
        {
            "exception.type": failure.kind,
            "exception.message": failure.message,
            "exception.stacktrace": failure.traceback,
        },
    )
    span.set_status(Status(StatusCode.ERROR, f"{failure.kind}: {failure.message}"))
