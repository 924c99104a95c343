"""The sink `webhook` against a real HTTP server that fails in all the ways that servers do."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from streamflow.errors import UsageError
from streamflow.sinks import Gone, TargetError, Webhook
from streamflow.sinks.targets import webhook
from streamflow.sinks.webhook_signing import type_of
from tests.support.receiver import Received, Receiver, Reply
from tests.support.sink_events import FakeBatch, step_done

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STREAMFLOW_WEBHOOK_SECRET", SECRET)
    monkeypatch.setattr(webhook, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(webhook, "LONGEST_PAUSE", 0.01)
    server = Receiver()
    yield server
    server.close()


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    return tmp_path / "refused.jsonl"


def sink_to(receiver: Receiver, letters: Path, **options: Any) -> Webhook:
    options.setdefault("attempts", 3)
    return Webhook(f"{receiver.url}/hooks/geheim", dead_letters=str(letters), **options)


async def write(sink: Webhook, *events: Any) -> None:
    try:
        await sink.open()
        await sink.write(FakeBatch(events))
    finally:
        await sink.close()


async def test_a_request_is_signed_as_standard_webhooks_says(receiver: Receiver, letters: Path) -> None:
    await write(sink_to(receiver, letters), step_done(1, {"cents": 990}))
    [request] = receiver.received
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    signature = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert request.headers["webhook-signature"] == f"v1,{signature}"
    assert request.headers["content-type"] == "application/json"
    assert "." not in request.headers["webhook-id"]
    body = json.loads(request.body)
    assert (body["type"], body["timestamp"]) == ("step.completed", "2025-11-30T09:46:41.000Z")
    assert body["data"]["data"]["result"] == {"cents": 990}
    assert type_of("HistoryLimitReached") == "history.limit_reached"


async def test_while_a_secret_is_replaced_both_sign(receiver: Receiver, letters: Path, tmp_path: Path) -> None:
    other = "whsec_" + base64.b64encode(bytes(24)).decode()
    (tmp_path / "secret").write_text(f"{SECRET}\n{other}\n")
    await write(sink_to(receiver, letters, secret_file=str(tmp_path / "secret")), step_done(1))
    assert len(receiver.received[0].headers["webhook-signature"].split()) == 2


@pytest.mark.parametrize("secret", ["", "geheim", "whsec_Z2VoZWlt", "whsec_!!!"])
def test_a_secret_that_is_none_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, letters: Path, secret: str
) -> None:
    monkeypatch.setenv("STREAMFLOW_WEBHOOK_SECRET", secret)
    with pytest.raises(UsageError) as failure:
        Webhook("https://example.org", dead_letters=str(letters))
    assert not secret or secret not in str(failure.value).split()


FAILURES = {
    "500": Reply(500),
    "404": Reply(404),
    "redirect": Reply(302, (("location", "/elsewhere"),)),
    "garbage": Reply(raw=b"\x16\x03\x01 this is not HTTP\r\n\r\n"),
    "closed": Reply(raw=b""),
    "half an answer": Reply(raw=b"HTTP/1.1 20"),
    "silence": Reply(silent=True),
}


@pytest.mark.parametrize("reply", FAILURES.values(), ids=FAILURES)
async def test_an_event_that_is_refused_is_a_dead_letter_and_others_follow(
    receiver: Receiver, letters: Path, reply: Reply
) -> None:
    receiver.reply = lambda request: reply if request.data["id"] == "r1:c1:0" else Reply()
    sink = sink_to(receiver, letters, timeout=0.3)
    await write(sink, step_done(1), step_done(2), step_done(3))
    assert receiver.taken == ["r1:c1:0"] * 3 + ["r1:c2:0", "r1:c3:0"]
    assert len({request.headers["webhook-id"] for request in receiver.received[:3]}) == 1
    [letter] = [json.loads(line) for line in letters.read_text().splitlines()]
    assert (letter["id"], letter["run_id"], letter["attempts"]) == ("r1:c1:0", "r1", 3)
    assert letter["body"]["data"]["id"] == "r1:c1:0"
    assert letter["reason"]
    assert sink.figures["dead_letters"] == 1


@pytest.mark.parametrize(
    "reply",
    [Reply(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 900000000\r\n\r\nx"), Reply(200, body=b"x" * 1_000_000)],
    ids=["that doesn't end", "that is large"],
)
async def test_an_answer_of_200_counts_whatever_its_body_is(
    receiver: Receiver, letters: Path, reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "READ_SECONDS", 0.05)
    receiver.reply = lambda _: reply
    await write(sink_to(receiver, letters), step_done(1))
    assert receiver.taken == ["r1:c1:0"]
    assert letters.read_text() == ""


async def test_a_receiver_that_is_busy_gets_the_event_again_and_again(
    receiver: Receiver, letters: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = itertools.chain([503, 429, 502] * 7, itertools.repeat(200))
    receiver.reply = lambda _: Reply(next(answers))
    with caplog.at_level(logging.INFO, "streamflow.sinks"):
        await write(sink_to(receiver, letters), step_done(1), step_done(2))
    assert receiver.taken == ["r1:c1:0"] * 22 + ["r1:c2:0"]
    assert letters.read_text() == ""
    assert "works again" in caplog.text


async def test_what_is_wrong_is_said_once(receiver: Receiver, letters: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = itertools.chain([503] * 20, itertools.repeat(200))
    receiver.reply = lambda _: Reply(next(answers))
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, "httpx"):  # as `--log-level info`
        await write(sink_to(receiver, letters), step_done(1))
    assert [record.levelname for record in caplog.records if record.name == "streamflow.sinks.webhook"] == [
        "WARNING", "INFO",
    ]  # fmt: skip
    assert "geheim" not in caplog.text


async def test_retry_after_is_waited_for(receiver: Receiver, letters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(webhook.anyio, "sleep", sleep)
    asked = iter(["7", "Fri, 31 Dec 2999 23:59:59 GMT", "soon", "-1", "nan"])

    def reply(_: Received) -> Reply:
        after = next(asked, None)
        return Reply(200) if after is None else Reply(429, (("retry-after", after),))

    receiver.reply = reply
    await write(sink_to(receiver, letters), step_done(1))
    assert slept[0] == 7
    assert slept[1] == webhook.LONGEST_RETRY_AFTER
    assert all(seconds <= 0.012 for seconds in slept[2:])
    assert len(slept) == 5


async def test_a_receiver_that_is_away_costs_no_event_within_the_patience(receiver: Receiver, letters: Path) -> None:
    url = receiver.url
    receiver.close()
    sink = Webhook(url, dead_letters=str(letters), attempts=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, sink, step_done(1))
        with anyio.fail_after(10):
            while sink.figures["requests"] <= 3:
                await anyio.lowlevel.checkpoint()
        assert letters.read_text() == ""
        tasks.cancel_scope.cancel()
    await write(Webhook(url, dead_letters=str(letters), attempts=1, patience=0.05), step_done(1))
    assert "can't be reached" in json.loads(letters.read_text())["reason"]


async def test_a_receiver_that_has_gone_ends_the_sink(receiver: Receiver, letters: Path) -> None:
    receiver.reply = lambda _: Reply(410)
    with pytest.raises(Gone):
        await write(sink_to(receiver, letters), step_done(1), step_done(2, run="r2"))
    assert letters.read_text() == ""


async def test_events_of_one_run_keep_their_order_and_others_do_not_wait(receiver: Receiver, letters: Path) -> None:
    """The first run's first event fails until another run's last one has come."""
    receiver.reply = lambda request: (
        Reply(500) if request.data["id"] == "r1:c0:0" and "r2:c9:0" not in receiver.taken else Reply()
    )
    events = [step_done(position, run=f"r{1 + position % 2}") for position in range(10)]
    await write(sink_to(receiver, letters, attempts=10_000), *events)
    in_order = list(dict.fromkeys(receiver.taken))
    for run in ("r1", "r2"):
        assert [name for name in in_order if name.startswith(run)] == [e.id for e in events if e.run_id == run]
    assert receiver.taken.index("r2:c9:0") < receiver.taken.index("r1:c2:0")


async def test_dead_letters_can_be_sent_again(receiver: Receiver, letters: Path) -> None:
    receiver.reply = lambda _: Reply(500)
    await write(sink_to(receiver, letters), step_done(1), step_done(2))
    receiver.received.clear()
    receiver.reply = lambda request: Reply(200 if request.data["id"] == "r1:c1:0" else 400)
    assert await sink_to(receiver, letters, resend=True).instead() == {"sent": 1, "refused": 1}
    assert receiver.taken == ["r1:c1:0", "r1:c2:0"]
    [letter] = [json.loads(line) for line in letters.read_text().splitlines()]
    assert (letter["id"], letter["attempts"], letter["reason"]) == ("r1:c2:0", 4, "it answers 400")
    receiver.reply = lambda _: Reply()
    assert await sink_to(receiver, letters, resend=True).instead() == {"sent": 1, "refused": 0}
    assert await sink_to(receiver, letters, resend=True).instead() == {"sent": 0, "refused": 0}
    assert list(letters.parent.glob("*.sending")) == []


async def test_dead_letters_survive_a_kill_while_they_are_sent(receiver: Receiver, letters: Path) -> None:
    receiver.reply = lambda _: Reply(500)
    await write(sink_to(receiver, letters), step_done(1))
    receiver.reply = lambda _: Reply(silent=True)
    taken = len(receiver.received)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sink_to(receiver, letters, resend=True).instead)
        with anyio.fail_after(10):
            while len(receiver.received) == taken:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    receiver.reply = lambda _: Reply(500)
    await write(sink_to(receiver, letters), step_done(2))  # meanwhile another one
    receiver.reply = lambda _: Reply()
    receiver.received.clear()
    assert await sink_to(receiver, letters, resend=True).instead() == {"sent": 1, "refused": 0}
    assert await sink_to(receiver, letters, resend=True).instead() == {"sent": 1, "refused": 0}
    assert receiver.taken == ["r1:c1:0", "r1:c2:0"]


async def test_what_was_taken_is_not_sent_again_after_an_error_of_our_own(receiver: Receiver, letters: Path) -> None:
    receiver.reply = lambda request: Reply(500 if request.data["id"] == "r1:c2:0" else 200)
    sink = sink_to(receiver, letters, attempts=1)
    await sink.open()
    letters.unlink()
    letters.mkdir()
    batch = FakeBatch([step_done(1), step_done(2), step_done(3)])
    with pytest.raises(TargetError, match="dead letters"):
        await sink.write(batch)
    letters.rmdir()
    await sink.write(batch)
    await sink.close()
    assert receiver.taken == ["r1:c1:0", "r1:c2:0", "r1:c2:0", "r1:c3:0"]
