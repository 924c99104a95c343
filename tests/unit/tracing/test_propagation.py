"""A `traceparent` is read and written at once where the usual propagators would do the same, and nowhere else."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from streamflow.model.record import decode_header
from streamflow.model.trace_context import pack, unpack
from streamflow.tracing import run_trace
from streamflow.tracing.run_trace import DroppedTrace, extract, has_usual_propagators, inject
from streamflow.tracing.spans import Tracing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Renamed(TraceContextTextMapPropagator):
    """One of an application, which may do anything."""

    _TRACEPARENT_HEADER_NAME = "x-trace"


@pytest.fixture
def propagator() -> Generator[None]:
    before = propagate.get_global_textmap()
    yield
    propagate.set_global_textmap(before)


def slow_extract(text: str) -> Context:
    return propagate.extract(unpack(text), context=Context())


def sent(context: Context) -> trace.SpanContext:
    return trace.get_current_span(context).get_span_context()


texts = st.one_of(
    st.builds(
        "{}-{}-{}-{}".format,
        st.sampled_from(["00", "01", "cc", "ff"]),
        st.sampled_from([TRACE, "0" * 32, "f" * 32]),
        st.sampled_from([SPAN, "0" * 16, "f" * 16]),
        st.sampled_from(["00", "01", "02", "03", "ff"]),
    ),
    st.text(max_size=60),
    st.just(""),
    st.just(pack({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=1"})),
    st.just(pack({"traceparent": f"00-{TRACE}-{SPAN}-01", "baggage": "user=7"})),
)


@given(texts)
def test_a_context_is_read_as_the_propagators_read_it(text: str) -> None:
    assert has_usual_propagators()
    fast, slow = extract(text), slow_extract(text)
    assert sent(fast) == sent(slow)
    assert sent(fast).trace_state == sent(slow).trace_state
    assert fast.keys() == slow.keys()
    assert baggage.get_all(fast) == baggage.get_all(slow)


@pytest.mark.parametrize("sampler", [ParentBased(ALWAYS_OFF), ParentBased(ALWAYS_ON)])
@pytest.mark.parametrize(
    "sender",
    [
        "",
        f"00-{TRACE}-{SPAN}-00",
        f"00-{TRACE}-{SPAN}-01",
        pack({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=1"}),
        pack({"traceparent": f"00-{TRACE}-{SPAN}-01", "baggage": "user=7"}),
        pack({"baggage": "user=7"}),
    ],
)
def test_a_context_is_written_as_the_propagators_write_it(sampler: ParentBased, sender: str) -> None:
    tracing = Tracing(TracerProvider(sampler=sampler, shutdown_on_exit=False).get_tracer("test"))
    header = decode_header(f"pending 0 - 1000000 0 flow - - - {sender}".strip().encode())
    run, header = tracing.begin("r", header)
    if isinstance(run, DroppedTrace):  # what was sent goes on as it is
        dropped = sent(extract(run.text()))
        assert dropped.is_valid
        assert not dropped.trace_flags.sampled
        assert run.text(1) == run.text(0) == (sender or header.trace)
        return
    assert run is not None
    for generation in (0, 1):
        fast = run.text(generation)
        own = trace.NonRecordingSpan(run.span_context(generation))
        assert fast == inject(trace.set_span_in_context(own, run.parent))


@pytest.mark.usefixtures("propagator")
def test_other_propagators_are_asked_as_soon_as_they_are_set() -> None:
    text = f"00-{TRACE}-{SPAN}-01"
    assert sent(extract(text)).is_valid
    others: list[TextMapPropagator] = [
        CompositePropagator([Renamed(), W3CBaggagePropagator()]),
        CompositePropagator([W3CBaggagePropagator()]),
        Renamed(),
    ]
    for other in others:
        propagate.set_global_textmap(other)
        assert not has_usual_propagators()
        assert not sent(extract(text)).is_valid
    propagate.set_global_textmap(CompositePropagator([TraceContextTextMapPropagator()]))
    assert has_usual_propagators()
    assert sent(run_trace.extract(text)).is_valid
