"""The effects of an advance: what few advances do is kept apart, and shared by all others."""

from __future__ import annotations

import msgspec
import pytest

from streamflow.machine.transition import IDLE, NOTHING_BESIDES, Besides, Effects

LISTS = [name for name in Besides.__struct_fields__ if isinstance(getattr(Besides(), name), list)]


def test_what_one_advance_does_besides_is_no_other_ones() -> None:
    one, other = Effects(), Effects()
    one.own_besides().warnings.append("late")
    one.own_besides().restate = True
    assert (one.besides.warnings, one.besides.restate) == (["late"], True)
    assert other.besides is NOTHING_BESIDES
    assert not any(msgspec.structs.astuple(NOTHING_BESIDES))


@pytest.mark.parametrize("name", Besides.__struct_fields__)
def test_what_all_share_can_not_be_changed(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(NOTHING_BESIDES, name, True)


@pytest.mark.parametrize("name", LISTS)
def test_nothing_can_be_added_to_what_all_share(name: str) -> None:
    with pytest.raises(AttributeError):
        getattr(NOTHING_BESIDES, name).append(1)


def test_an_idle_machine_changes_nothing_that_others_share() -> None:
    IDLE.own_besides().warnings.append("late")
    assert IDLE.besides is NOTHING_BESIDES
