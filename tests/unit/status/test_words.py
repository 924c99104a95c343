"""What is wrong, in words: which problems there are, which need a person, and which command shows more."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from streamflow.model.blocked import BlockedLine
from streamflow.status import words
from streamflow.status.model import (
    DaemonRow,
    NamespaceStatus,
    Quarantined,
    Queue,
    Server,
    SilentStep,
    SubscriberGroup,
    UnservedWorkflow,
    WorkerRow,
)
from streamflow.status.words import STORM, Sentence, health, needs_a_person
from streamflow.store.pauses import Pause
from streamflow.store.served_triggers import ServedTrigger
from streamflow.wire import Heartbeat, StorageWait


def status(beat: Heartbeat | None = None, namespace: str = "default", **fields: Any) -> NamespaceStatus:
    fields.setdefault("daemons", [DaemonRow(id="a", heartbeat=beat or Heartbeat(name="a"))])
    return NamespaceStatus(namespace=namespace, as_of=1_700_000_000_000, **fields)


def line(ms: float, *, count: int = 1, line: str = "x.py:1") -> BlockedLine:
    return BlockedLine("workflow order", line, ms, count, 3.0)


def sized(workflow: str, runs: int, bytes_: int, today: int) -> dict[str, Any]:
    ages = {"day": {"runs": 1, "bytes": today}, "older": {"runs": 1, "bytes": bytes_ - today}}
    return {"workflow": workflow, "runs": runs, "bytes": bytes_, "ages": ages}


def retried(step: str, retries: int, *, succeeded: int = 0, message: str = "") -> dict[str, Any]:
    return {
        "step": step,
        "kind": "HTTPError",
        "message": message,
        "retries": retries,
        "succeeded": succeeded,
        "first": 1,
        "last": 2,
        "run_id": f"r-{step}",
    }


VIEWS_OF_ORDER = {"runs": {"workflows": {"order": {"running": 1, "paused": 2, "completed": 7}}}}
CASES: dict[str, tuple[NamespaceStatus, Sentence]] = {
    "no_daemons": (
        status(daemons=[], shards_unowned=4),
        Sentence("error", "no_daemons", "no daemons", "streamflow daemon --app APP"),
    ),
    "shards_unowned": (
        status(shards_unowned=1),
        Sentence("error", "shards_unowned", "1 shard without owner", "streamflow status --shards"),
    ),
    "shards_stopped": (
        status(Heartbeat(broken={"shard 5": "x"}, stopped=1)),
        Sentence("error", "shards_stopped", "shard 5 stopped", "streamflow status"),
    ),
    "servers_away": (
        status(server=Server(aof="on", servers=3, away=1)),
        Sentence("error", "servers_away", "1 of 3 servers away", "streamflow check"),
    ),
    "memory": (
        status(
            server=Server(aof="on", fullest=0.91),
            views={"sizes": {"workflows": [sized("nightly", 640_000, 3_300_000_000, 990_000_000)]}},
        ),
        Sentence(
            *("error", "memory"),
            "memory 91 % full · 640,000 ended runs of nightly take about 3.1 GB, 70 % of it for over a day",
            "streamflow status --json",
        ),
    ),
    "lost_writes": (
        status(Heartbeat(lost=2)),
        Sentence("error", "lost_writes", "2 runs lost or set back by the server"),
    ),
    "loops_failing": (
        status(Heartbeat(failing={"relay": "x", "inbox 3": "y"})),
        Sentence("error", "loops_failing", "loop inbox 3 and 1 more failing", "streamflow status --json"),
    ),
    "runs_stuck": (
        status(views={"runs": {"status": {"stuck": 212}}}),
        Sentence("warning", "runs_stuck", "212 runs stuck", "streamflow runs --status stuck"),
    ),
    "no_workers": (
        status(queues=[Queue(name="gpu", waiting=3), Queue(name="cpu", waiting=1, workers=1), Queue(name="tpu")]),
        Sentence("warning", "no_workers", "no workers for queue gpu", "streamflow worker --app APP --queue gpu"),
    ),
    "group_lost": (
        status(groups=[SubscriberGroup(name="billing", lost=3, lost_ms=1000, consumers=1), SubscriberGroup(name="b")]),
        Sentence("warning", "group_lost", "group billing lost events", "streamflow groups show billing"),
    ),
    "group_held_up": (
        status(
            groups=[
                SubscriberGroup(name="erp", consumers=1, trouble="connection refused"),
                SubscriberGroup(name="b", consumers=1),
            ]
        ),
        Sentence("warning", "group_held_up", "group erp is held up: connection refused", "streamflow groups show erp"),
    ),
    "group_unread": (
        status(groups=[SubscriberGroup(name="old", waiting=7, behind_ms=700_000), SubscriberGroup(name="new")]),
        Sentence("warning", "group_unread", "nobody reads group old", "streamflow groups show old"),
    ),
    "loop_blocked": (
        status(
            Heartbeat(name="api-2", blocked=[line(499.0), line(900.0, count=12, line="order.py:61")]),
            workers=[WorkerRow(name="w", blocked=[line(600.0)])],
        ),
        Sentence(
            "warning",
            "loop_blocked",
            "api-2: blocked 900 ms 12 times by workflow order at order.py:61, and 1 more",
            "streamflow status --json",
        ),
    ),
    "shards_move": (
        status(Heartbeat(name="api-2", shards=list(range(85)), moved=340)),
        Sentence(
            "warning",
            "shards_move",
            "api-2: 85 shards, moved 340 times in 10 min",
            "streamflow status --shards",
        ),
    ),
    "retries_fail": (
        status(
            views={
                "retries": {
                    "minutes": 10,
                    "retries": [
                        retried("mail", 20_000, succeeded=1),
                        retried("crawl", 9_120, message="429 Too Many Requests"),
                        retried("fetch", STORM),
                        retried("print", STORM - 1),
                    ],
                }
            }
        ),
        Sentence(
            "warning",
            "retries_fail",
            "step crawl: 9,120 retries in 10 min, 0 succeeded: HTTPError: 429 Too Many Requests, and 1 more",
            "streamflow show r-crawl",
        ),
    ),
    "steps_silent": (
        status(
            silent=[
                SilentStep(name="model", run_id="a-1b", seq=1, attempt=1, seconds=10_680, kind="worker", holder="gpu-7")
            ],
            silent_steps=2,
        ),
        Sentence(
            "warning",
            "steps_silent",
            "step model of a-1b: silent for 2 h 58 m (worker gpu-7 lives), and 1 more",
            "streamflow show a-1b",
        ),
    ),
    "storage_waits": (
        status(Heartbeat(put_off=3), storage_waits=[StorageWait(2, "order-7", "payload", 40.0, "the archive is away")]),
        Sentence(
            "warning",
            "storage_waits",
            "3 runs waiting for storage for 40 s: the archive is away",
            "streamflow show order-7",
        ),
    ),
    "workflow_unserved": (
        status(
            unserved=[
                UnservedWorkflow(name="invoice_v1", ms=7_500_000, open=41),
                UnservedWorkflow(name="b", ms=1, open=1),
            ]
        ),
        Sentence(
            "warning",
            "workflow_unserved",
            "workflow invoice_v1: 41 open runs, and no daemon has had it for 2 h 05 m, and 1 more",
            "streamflow runs --workflow invoice_v1",
        ),
    ),
    "impaired": (
        status(workers=[WorkerRow(name="w", impaired={"partition 3 of queue gpu": "x"})]),
        Sentence("warning", "impaired", "partition 3 of queue gpu impaired", "streamflow status"),
    ),
    "threads_hung": (
        status(Heartbeat(hung=1)),
        Sentence("warning", "threads_hung", "1 thread hung", "streamflow health"),
    ),
    "quarantined": (
        status(quarantine=Quarantined(count=1)),
        Sentence("warning", "quarantined", "1 message quarantined", "streamflow quarantine list"),
    ),
    "undelivered": (
        status(undelivered=2),
        Sentence("warning", "undelivered", "2 deliveries quarantined", "streamflow trigger quarantine list"),
    ),
    "trigger_failing": (
        status(
            triggers=[
                ServedTrigger(name="fine", kind="list", source="list a", processes=2),
                ServedTrigger(name="orders", kind="kafka", source="topic orders", problem="no brokers", processes=1),
                ServedTrigger(name="push", kind="webhook", source="/push", problem="not served: in use", processes=1),
            ]
        ),
        Sentence("warning", "trigger_failing", "trigger orders: no brokers, and 1 more", "streamflow trigger status"),
    ),
    "trigger_unserved": (
        status(triggers=[ServedTrigger(name=name, kind="list", source="list b") for name in ("b", "a")]),
        Sentence("warning", "trigger_unserved", "nobody serves trigger a and 1 more", "streamflow trigger status"),
    ),
    "aof_off": (status(server=Server(aof="off")), Sentence("note", "aof_off", "AOF off", "streamflow check")),
    "workflow_paused": (
        status(paused={"order": Pause(1, "kim@box", "429")}, views=VIEWS_OF_ORDER),
        Sentence(
            *("note", "workflow_paused", "workflow order paused by kim@box: 429 (3 open runs)"),
            "streamflow resume --workflow order",
        ),
    ),
    "runs_paused": (
        status(views={"runs": {"status": {"paused": 2}}}),
        Sentence("note", "runs_paused", "2 runs paused", "streamflow runs --status paused"),
    ),
    "queue_paused": (
        status(queues=[Queue(name="gpu", waiting=3, workers=1, paused=Pause(1, "kim@box", "new driver"))]),
        Sentence(
            *("note", "queue_paused", "queue gpu paused by kim@box: new driver (3 steps waiting)"),
            "streamflow resume --queue gpu",
        ),
    ),
    "draining": (status(Heartbeat(draining=True)), Sentence("note", "draining", "1 draining")),
}


@pytest.mark.parametrize("code", CASES)
def test_each_problem_has_its_sentence_and_its_command(code: str) -> None:
    current, sentence = CASES[code]
    assert health(current) == [sentence]
    assert needs_a_person([sentence]) is (sentence.level != "note")


def test_memory_is_named_without_what_takes_it_if_that_is_not_known() -> None:
    full = Server(aof="on", fullest=0.8)
    for views in ({}, {"sizes": {"workflows": []}}, {"sizes": {"workflows": [sized("w", 0, 0, 0)]}}):
        assert health(status(server=full, views=views))[0].text == "memory 80 % full"


def test_nothing_is_said_of_a_healthy_namespace() -> None:
    assert health(status(server=Server(aof="everysec", fullest=0.79))) == []
    assert not needs_a_person([])


def test_every_code_is_tried_here() -> None:
    codes = set(re.findall(r'found\.add\(\s*"\w+", "(\w+)"', inspect.getsource(words)))
    assert codes == set(CASES)


def test_a_paused_queue_without_workers_says_both() -> None:
    current = status(queues=[Queue(name="gpu", waiting=3, paused=Pause(1, "kim"))])
    texts = {sentence.code: sentence.text for sentence in health(current)}
    assert texts["queue_paused"] == "queue gpu paused by kim (3 steps waiting, no workers)"
    assert texts["no_workers"] == "no workers for queue gpu"


def test_the_worst_is_the_first_and_notes_are_the_last() -> None:
    current = status(
        Heartbeat(draining=True, lost=1),
        shards_unowned=2,
        server=Server(aof="off"),
        quarantine=Quarantined(count=1),
        views={"runs": {"status": {"stuck": 1}}},
    )
    assert [sentence.code for sentence in health(current)] == [
        *("shards_unowned", "lost_writes"),
        *("runs_stuck", "quarantined"),
        *("aof_off", "draining"),
    ]


def test_of_paused_queues_the_one_in_which_most_waits_is_named() -> None:
    queues = [Queue(name=name, waiting=count, workers=1, paused=Pause(1)) for name, count in (("a", 0), ("b", 1))]
    [sentence] = health(status(queues=queues))
    assert sentence.text == "queue b paused (1 step waiting), and 1 more"
    assert sentence.command == "streamflow resume --queue b"


def test_commands_name_another_namespace_and_are_safe_to_paste() -> None:
    current = status(namespace="prod", queues=[Queue(name="a; rm -rf x", waiting=1)])
    [sentence] = health(current)
    assert sentence.command == "streamflow worker --app APP --queue 'a; rm -rf x' --namespace prod"
    [sentence] = health(status(Heartbeat(hung=1), namespace="prod"))
    assert sentence.command == "streamflow health", "that is about a machine"
