"""What a machine makes of `sf.set_attributes` and `sf.publish`: effects of the transition, and nothing in a replay."""

from __future__ import annotations

import streamflow as sf
from streamflow.events import SignalReceived
from streamflow.machine.factory import rehydrate
from streamflow.model.attributes import Attribute
from streamflow.model.record import Header
from streamflow.model.sharding import Partition
from tests.support.machine_driver import Run, plain, raw

app = sf.App(parks=())


@app.workflow
async def talking() -> str:
    sf.set_attributes(a=1, b="x")
    sf.publish("at", 0)
    try:
        for number in range(1, 3):
            await sf.signal("go")
            sf.publish("at", number)
            sf.publish("again", number)
            sf.publish("again", number * 10)
            sf.set_attributes(a=number * 10)
            sf.set_attributes(b=None, c=True)
    finally:
        sf.publish("at", "the end")
        sf.set_attributes(late=True)
    return "done"


@app.workflow
async def reborn(generation: int) -> str:
    sf.set_attributes(**{f"generation{generation}": "x" * 250}, generation=generation)  # nine of these are too many
    await sf.signal("go")
    if generation < 20:
        raise sf.ContinueAs(generation + 1)
    return "old"


@app.reducer
def filling(state: int, event: sf.Event) -> sf.Decision:
    if isinstance(event, sf.Signal):
        sf.set_attributes(**{f"a{state}": state})
        sf.publish("state", state)
    return sf.Decision(state + 1)


def go(name: str = "go") -> SignalReceived:
    return SignalReceived(name, raw(None))


def published(run: Run) -> dict[str, object] | None:
    found = run.last.besides.published
    return None if found is None else {key: plain(data) for key, data in found.items()}


def test_the_calls_are_effects_and_the_last_of_a_name_counts() -> None:
    run = Run(app, "talking")
    assert (run.last.besides.attributes, published(run)) == ({"a": 1, "b": "x"}, {"at": 0})
    run.advance(go())
    assert (run.last.besides.attributes, published(run)) == ({"a": 10, "b": None, "c": True}, {"at": 1, "again": 10})
    run.advance(go("other"))
    assert (run.last.besides.attributes, run.last.besides.published) == (None, None)


def test_they_are_not_events_and_a_replay_does_not_repeat_them() -> None:
    run = Run(app, "talking")
    run.advance(go())
    assert run.names == ["RunStarted", "SignalReceived"]
    machine = run.reload()
    assert (machine.effects.besides.attributes, machine.effects.besides.published) == (None, None)
    run.advance(go())
    assert run.last.besides.attributes == {"a": 20, "b": None, "c": True, "late": True}
    assert published(run) == {"at": "the end", "again": 20}
    assert run.last.ended


def test_code_of_an_evicted_run_sets_and_publishes_nothing() -> None:
    run = Run(app, "talking")
    run.machine.close()
    other = Run(app, "talking")
    assert other.machine.effects.besides.published is None
    assert other.machine.effects.besides.attributes is None


def test_a_reducer_knows_its_attributes_from_its_header() -> None:
    run = Run(app, "filling")
    run.advance(*(go() for _ in range(32)))
    assert not run.last.ended
    attributes: dict[str, Attribute] = {f"a{number}": number for number in range(1, 33)}
    assert run.last.besides.attributes == attributes
    header = Header("running", 2, "c", 1000, 0, "filling", "", "", attributes)
    run.machine = rehydrate(app, Partition.RUN, "r", header, run.state, run.transitions())
    run.advance(go())
    assert run.last.ended, "the 33rd is refused, and the reducer doesn't catch that"
    assert run.names[-1] == "RunFailed"


def test_limits_apply_to_one_generation_whether_it_is_replayed_or_not() -> None:
    """What a replay can't know must not decide: the batch counts the attributes of earlier generations."""
    run = Run(app, "reborn", 1)
    for _ in range(19):
        assert not run.last.ended, run.history[-1]
        run.advance(go())
        assert run.last.besides.fresh
        run.elements = run.elements[-1:]  # as the store keeps them
        run.reload()
    assert run.machine.attributes == {"generation20": "x" * 250, "generation": 20}
    run.advance(go())
    assert run.names[-1] == "RunCompleted"
