"""What the usual sampler has dropped is not asked for again: which samplers that holds for, and what steps get."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)

from streamflow.model.record import decode_header
from streamflow.model.trace_context import pack
from streamflow.tracing.run_trace import DroppedTrace, RunTrace, extract, is_unsampled
from streamflow.tracing.spans import Attempt, Tracing

HEADER = decode_header(b"pending 0 - 1000000 0 flow - -")


class Counts(Sampler):
    """Decides the same each time, and counts how often it is asked."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.asked = 0

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        self.asked += 1
        return SamplingResult(self.decision)

    def get_description(self) -> str:
        return "Counts"


def tracing_of(sampler: Sampler) -> Tracing:
    return Tracing(TracerProvider(sampler=sampler, shutdown_on_exit=False).get_tracer("test"))


def attempt(tracing: Tracing, text: str) -> Attempt | DroppedTrace:
    step = SimpleNamespace(name="add", queue=None, function=attempt)
    job = SimpleNamespace(trace=text, step=step, workflow="flow", seq=1, attempt=1)
    made = tracing.attempt("r", cast("Any", job))
    assert made is not None
    return made


def begin(tracing: Tracing) -> tuple[RunTrace | DroppedTrace, str]:
    run, header = tracing.begin("r", HEADER)
    assert run is not None
    return run, header.trace


def test_a_dropped_run_asks_its_sampler_once() -> None:
    root = Counts(Decision.DROP)
    tracing = tracing_of(ParentBased(root))
    run, text = begin(tracing)
    first, second = attempt(tracing, text), attempt(tracing, text)
    assert run.dropped
    assert root.asked == 1
    assert first is second
    assert first.text() == text == run.text(3)


def test_steps_of_a_dropped_run_have_the_context_that_was_sent() -> None:
    tracing = tracing_of(ParentBased(ALWAYS_OFF))
    _, text = begin(tracing)
    elsewhere = attempt(tracing_of(ParentBased(ALWAYS_OFF)), text)
    for context in (attempt(tracing, text), elsewhere):
        assert isinstance(context, DroppedTrace)
        sent = trace.get_current_span(context).get_span_context()
        assert sent == trace.get_current_span(extract(text)).get_span_context()
        assert not sent.trace_flags.sampled


@pytest.mark.parametrize(
    "sampler",
    [
        ParentBased(ALWAYS_ON),
        Counts(Decision.DROP),
        ParentBased(Counts(Decision.RECORD_ONLY)),
        ParentBased(ALWAYS_OFF, remote_parent_not_sampled=ALWAYS_ON),
        ParentBased(ALWAYS_OFF, local_parent_not_sampled=ALWAYS_ON),
        ParentBased(ParentBased(ALWAYS_OFF), local_parent_not_sampled=ParentBased(ALWAYS_ON)),
    ],
)
def test_other_samplers_and_decisions_are_asked_each_time(sampler: Sampler) -> None:
    run, _ = begin(tracing_of(sampler))
    assert not run.dropped


def test_a_parent_that_was_dropped_is_asked_where_a_sampler_may_differ() -> None:
    tracing = tracing_of(ParentBased(ALWAYS_OFF, remote_parent_not_sampled=ALWAYS_ON))
    _, text = begin(tracing)
    made = attempt(tracing, text)
    assert isinstance(made, Attempt)
    assert made.span.is_recording()


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(ALWAYS_OFF), ParentBased(TraceIdRatioBased(0.0))])
def test_a_run_that_is_dropped_at_once_has_a_trace_of_its_own(sampler: Sampler) -> None:
    tracing = tracing_of(sampler)
    (run, text), (_, other) = begin(tracing), begin(tracing)
    sent = trace.get_current_span(extract(text)).get_span_context()
    assert isinstance(run, DroppedTrace)
    assert sent.is_valid
    assert not sent.trace_flags.sampled
    assert sent.trace_id != trace.get_current_span(extract(other)).get_span_context().trace_id


def test_a_share_of_the_traces_is_sampled_as_its_sampler_says() -> None:
    root = TraceIdRatioBased(0.5)
    tracing = tracing_of(ParentBased(root))
    begun = [begin(tracing) for _ in range(200)]
    assert {type(run) for run, _ in begun} == {RunTrace, DroppedTrace}
    for run, text in begun:
        trace_id = trace.get_current_span(extract(text)).get_span_context().trace_id
        decision = root.should_sample(None, trace_id, "run flow").decision
        assert isinstance(run, RunTrace) == decision.is_sampled()


def test_a_sampler_of_ones_own_is_asked_about_each_trace_that_begins() -> None:
    class Subclass(TraceIdRatioBased):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            return SamplingResult(Decision.RECORD_AND_SAMPLE)

    run, _ = begin(tracing_of(ParentBased(Subclass(0.0))))
    assert not run.dropped


def test_a_later_daemon_that_samples_all_finds_no_parent_of_a_root() -> None:
    _, text = begin(tracing_of(ParentBased(ALWAYS_OFF)))
    again, _ = tracing_of(ALWAYS_ON).begin("r", msgspec.structs.replace(HEADER, trace=text))
    assert isinstance(again, RunTrace)
    assert not again.dropped
    assert not trace.get_current_span(again.parent).get_span_context().is_valid


def test_code_of_a_dropped_run_finds_the_baggage_that_was_sent() -> None:
    sent = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-00", "baggage": "user=7"}
    tracing = tracing_of(ParentBased(ALWAYS_ON))
    made = attempt(tracing, pack(sent))
    assert isinstance(made, DroppedTrace)
    assert baggage.get_all(made) == {"user": "7"}
    assert not trace.get_current_span(made).get_span_context().trace_flags.sampled


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"ff-{'1' * 32}-{'2' * 16}-00",
        f"00-{'0' * 32}-{'2' * 16}-00",
        f"00-{'1' * 32}-{'0' * 16}-00",
        f"00-{'1' * 32}-{'2' * 16}-01",
        f"00-{'1' * 32}-{'2' * 16}-00 ",
    ],
)
def test_only_a_valid_context_says_that_it_is_not_sampled(text: str) -> None:
    assert not is_unsampled(text)
