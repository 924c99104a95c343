"""Counts by powers of two, labels that stay few, and the text that a scraper parses."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from streamflow.http import catalog
from streamflow.http.exposition import bounds, encoder_for, source_of
from streamflow.http.figures import OTHERS, Figures, Names, Powers, up_to


@given(st.lists(st.integers(0, 2**40), max_size=30))
def test_powers_count_what_is_below_each(values: list[int]) -> None:
    powers = Powers()
    for value in values:
        powers.add(value)
    exponents = (0, 1, 5, 10, 30, 41)
    expected = [*(sum(value < 2**power for value in values) for power in exponents), len(values)]
    assert up_to(powers.counts, exponents) == expected
    assert powers.total == sum(values)


def test_names_of_the_app_are_labels_and_unknown_ones_are_few() -> None:
    names = Names(["index", "fetch"])
    for number in range(1000):
        names.label(f"made-up-{number}")
    assert names.label("index") == "index"
    assert names.label("made-up-0") == "made-up-0"  # one that was let in stays
    assert names.label("made-up-999") == "other"
    labels = {names.label(f"made-up-{number}") for number in range(1000)}
    assert len(labels) == OTHERS + 1


def test_names_that_are_too_many_are_added_up() -> None:
    names = Names([])
    grouped = names.grouped({f"{number:04}": number for number in range(OTHERS + 3)})
    assert grouped["other"] == [OTHERS, OTHERS + 1, OTHERS + 2]
    assert grouped["0000"] == [0]


def parsed(text: bytes) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def test_the_text_has_every_label_and_cumulative_buckets() -> None:
    figures = Figures()
    figures.set(catalog.RUNS_OPEN, 3, 'a "quoted\\name', "stuck")
    figures.set(catalog.LOOP_FAILURES, 2)
    figures.set_histogram(catalog.COMMIT_RUNS, [1, 2, 0, 4], 20.0)
    encode, content_type = encoder_for("")
    assert content_type.startswith("text/plain; version=0.0.4")
    families = parsed(encode(source_of(figures, "shop")))
    [open_runs] = families["streamflow_namespace_runs_open"].samples
    assert open_runs.labels == {"sf_namespace": "shop", "workflow": 'a "quoted\\name', "status": "stuck"}
    assert families["streamflow_loop_failures"].type == "counter"
    runs = families["streamflow_commit_runs"].samples
    buckets = {sample.labels["le"]: sample.value for sample in runs if "le" in sample.labels}
    assert [buckets["0.0"], buckets["1.0"], buckets["3.0"], buckets["7.0"], buckets["+Inf"]] == [1, 3, 3, 7, 7]
    assert {sample.name: sample.value for sample in runs if "le" not in sample.labels} == {
        "streamflow_commit_runs_count": 7,
        "streamflow_commit_runs_sum": 20,
    }
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6


def test_open_metrics_are_given_to_those_who_ask() -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2"
    encode, content_type = encoder_for(accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert encode(source_of(Figures(), "shop")).endswith(b"# EOF\n")


def test_buckets_end_at_powers_of_two_of_their_unit() -> None:
    assert bounds(catalog.STEP_DURATION)[:2] == ["0.001024", "0.002048"]
    assert bounds(catalog.COMMIT_RUNS)[:4] == ["0.0", "1.0", "3.0", "7.0"]
