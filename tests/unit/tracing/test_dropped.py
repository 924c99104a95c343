"""What the usual sampler has dropped is not asked for again: which samplers that holds for, and what steps get."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, ParentBased, Sampler, SamplingResult

from streamflow.model.record import decode_header
from streamflow.tracing.run_trace import RunTrace, extract
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


def attempt(tracing: Tracing, text: str) -> Attempt:
    step = SimpleNamespace(name="add", queue=None, function=attempt)
    job = SimpleNamespace(trace=text, step=step, workflow="flow", seq=1, attempt=1)
    made = tracing.attempt("r", cast("Any", job))
    assert made is not None
    return made


def begin(tracing: Tracing) -> tuple[RunTrace, str]:
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
    assert first.text == text


def test_steps_of_a_dropped_run_have_the_context_that_was_sent() -> None:
    tracing = tracing_of(ParentBased(ALWAYS_OFF))
    _, text = begin(tracing)
    elsewhere = attempt(tracing_of(ParentBased(ALWAYS_OFF)), text)
    for context in (attempt(tracing, text).context, elsewhere.context):
        sent = trace.get_current_span(context).get_span_context()
        assert sent == trace.get_current_span(extract(text)).get_span_context()
        assert not sent.trace_flags.sampled


@pytest.mark.parametrize(
    "sampler",
    [
        ParentBased(ALWAYS_ON),
        ALWAYS_OFF,
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
    assert attempt(tracing, text).span.is_recording()
