"""Events to an HTTP endpoint, one signed POST each, in order for each run.

Owns: what an answer means, when it is tried again, and when an event is given up. Must not: follow a redirect, log a
secret or what is behind the host in a URL. Called by: `streamflow.sinks`, `streamflow sink webhook`.

Two kinds of failure. A receiver that can't be reached, or says that it is busy (408, 425, 429, 502, 503, 504), says
nothing of the event: it is tried again for `patience`, and everything behind it waits. Any other answer, and a
connection that breaks or stays silent after the request was sent, may be because of this event: after `attempts` of
them it is a dead letter, and the next one of its run is sent.
"""

from __future__ import annotations

import email.utils
import logging
import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import anyio
import anyio.to_thread
from msgspec import Meta

from streamflow.errors import UsageError
from streamflow.sinks.dead_letters import DeadLetter, DeadLetters
from streamflow.sinks.rows import json_bytes
from streamflow.sinks.sink import Gone, Sink, TargetError, required
from streamflow.sinks.trouble import Trouble
from streamflow.sinks.webhook_signing import body_of, headers_of, read_secrets, webhook_id
from streamflow.text import recordable

if TYPE_CHECKING:
    from streamflow.client.committed import CommittedEvent
    from streamflow.client.subscription import EventBatch

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds between two attempts; the pause doubles."""
LONGEST_RETRY_AFTER = 3600.0
"""Seconds that an answer may ask for."""
CONNECT_SECONDS = 5.0
READ_BYTES = 64 * 1024
READ_SECONDS = 1.0
"""How much of an answer's body is read, and for how long: so that its connection can be used again."""
AWAY = {408, 425, 429, 502, 503, 504}
"""Status codes that say something of the receiver, and nothing of the event."""
GONE = 410

_log = logging.getLogger("streamflow.sinks.webhook")


class Answer(NamedTuple):
    """What an attempt has given. `taken`: the receiver has it. `counts`: it may be because of the event."""

    taken: bool
    counts: bool = True
    says: str = ""
    retry_after: float = 0.0


class Webhook(Sink):
    """Post each event to an HTTP endpoint, signed, in order for each run.

    The request is one of Standard Webhooks: webhook-id, webhook-timestamp, webhook-signature (HMAC-SHA256). Only an
    answer of 2xx is an acknowledgement. Others are tried again, after growing pauses or what Retry-After says; after
    --attempts the event goes to the file --dead-letters, and the next one follows. While the receiver can't be reached
    everything waits. The secret (whsec_…) is in --secret-file or STREAMFLOW_WEBHOOK_SECRET.

    \b
    Example:
      streamflow sink webhook https://erp.example.org/hooks --dead-letters refused.jsonl --kind RunCompleted
    """

    max_events = 200

    def __init__(
        self,
        url: Annotated[str, Meta(title="URL", extra={"env": "STREAMFLOW_SINK_WEBHOOK"})],
        *,
        dead_letters: Annotated[str, Meta(title="FILE", description="Where events go that the receiver refuses")] = "",
        secret_file: Annotated[str, Meta(title="FILE", description="File with the signing secret")] = "",
        unsigned: Annotated[bool, Meta(description="Send requests without a signature")] = False,
        attempts: Annotated[int, Meta(ge=1, title="N", description="Attempts until an event is a dead letter")] = 6,
        patience: Annotated[
            float,
            Meta(
                gt=0,
                title="SECONDS",
                description="How long an event waits for a receiver that can't be reached",
            ),
        ] = 86_400.0,
        timeout: Annotated[float, Meta(gt=0, title="SECONDS", description="How long an answer may take")] = 15.0,
        concurrency: Annotated[int, Meta(ge=1, title="N", description="Runs whose events are sent at once")] = 8,
        resend: Annotated[bool, Meta(description="Send the dead letters again instead, and end")] = False,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError("the URL of a webhook begins with https:// or http://")
        if not dead_letters:
            raise UsageError("say with --dead-letters FILE where events go that the receiver refuses")
        self._url = url
        self._keys = [] if unsigned else read_secrets(secret_file)
        self._letters = DeadLetters(dead_letters)
        self._attempts = attempts
        self._patience = patience
        self._timeout = timeout
        self._concurrency = concurrency
        self._resend = resend
        self._client: Any = None
        self._httpx: Any = None
        self._trouble = Trouble(_log, "the receiver")
        self._taken: set[str] = set()
        """Of the batch under way: what is tried again after an error isn't sent twice."""
        self._figures = {"dead_letters": 0, "requests": 0}

    @property
    def figures(self) -> dict[str, int]:
        """`dead_letters`: events that were given up. `requests`: attempts of all events."""
        return self._figures

    @property
    def problem(self) -> str:
        return self._trouble.says

    async def open(self) -> None:
        httpx = self._httpx = required("httpx", "webhook")
        logging.getLogger("httpx").setLevel(logging.WARNING)  # else it logs each URL, which may have a secret
        self._letters.check()
        limits = httpx.Limits(max_connections=self._concurrency, max_keepalive_connections=self._concurrency)
        timeout = httpx.Timeout(self._timeout, connect=min(CONNECT_SECONDS, self._timeout))
        self._client = httpx.AsyncClient(limits=limits, timeout=timeout, follow_redirects=False)

    async def write(self, batch: EventBatch) -> None:
        runs: dict[tuple[str, int], list[CommittedEvent]] = {}
        for event in batch.events:
            if event.id not in self._taken:
                runs.setdefault((event.run_id, event.created), []).append(event)
        limiter = anyio.CapacityLimiter(self._concurrency)

        async def deliver_in_order(events: list[CommittedEvent]) -> None:
            async with limiter:
                for event in events:
                    await self._deliver(event)
                    self._taken.add(event.id)

        try:
            async with anyio.create_task_group() as sending:
                for events in runs.values():
                    sending.start_soon(deliver_in_order, events)
        except BaseExceptionGroup as group:
            raise _first(group) from None
        self._taken.clear()

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def instead(self) -> dict[str, Any] | None:
        """With `resend`: sends each dead letter once; those that are refused again are dead letters again."""
        if not self._resend:
            return None
        await self.open()
        try:
            letters = await anyio.to_thread.run_sync(self._letters.take)
            sent = 0
            for letter in letters:
                answer = await self._post(letter.id, json_bytes(letter.body))
                if answer.taken:
                    sent += 1
                else:
                    await self._give_up(letter.id, letter.run_id, letter.body, letter.attempts + 1, answer.says)
            await anyio.to_thread.run_sync(self._letters.done)
        finally:
            await self.close()
        return {"sent": sent, "refused": len(letters) - sent}

    async def _deliver(self, event: CommittedEvent) -> None:
        """Returns when the receiver has it, or the file of dead letters."""
        content = body_of(event)
        body = json_bytes(content)
        counted, began, pause = 0, time.monotonic(), FIRST_PAUSE
        while True:
            answer = await self._post(event.id, body)
            if answer.taken:
                self._trouble.over()
                return
            counted += answer.counts
            waited = time.monotonic() - began
            if counted >= self._attempts or (not answer.counts and waited > self._patience):
                await self._give_up(event.id, event.run_id, content, counted, answer.says)
                return
            self._trouble.note(answer.says)
            await anyio.sleep(max(pause * random.uniform(0.8, 1.2), answer.retry_after))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _post(self, event_id: str, body: bytes) -> Answer:
        httpx = self._httpx
        self._figures["requests"] += 1
        headers = headers_of(webhook_id(event_id), int(time.time()), body, self._keys)
        answer = None
        try:
            with anyio.fail_after(self._timeout):
                async with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                    answer = _answer(response.status_code, response.headers)
                    with anyio.move_on_after(READ_SECONDS):
                        await _read_some(response)
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as error:
            if answer is None:  # else only its body was strange
                answer = self._failed(error)
        assert answer is not None
        return answer

    def _failed(self, error: Exception) -> Answer:
        httpx = self._httpx
        unreachable = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            raise UsageError("the URL of the webhook can't be used: is it complete?")
        if isinstance(error, unreachable):
            return Answer(False, counts=False, says=recordable(f"can't be reached: {error}", 300))
        if isinstance(error, TimeoutError | httpx.TimeoutException):
            return Answer(False, says=f"no answer within {self._timeout:g} s")
        return Answer(False, says=recordable(f"{type(error).__name__}: {error}", 300))

    async def _give_up(self, event_id: str, run_id: str, body: Any, attempts: int, reason: str) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        letter = DeadLetter(event_id, run_id, at, attempts, reason, body)
        await anyio.to_thread.run_sync(self._letters.add, letter)
        self._figures["dead_letters"] += 1
        _log.error("event %s of run %s is a dead letter: %s", event_id, run_id, reason)


def _answer(status: int, headers: Any) -> Answer:
    if 200 <= status < 300:
        return Answer(True)
    if status == GONE:
        raise Gone("the receiver answers 410 Gone: it wants no more events, and the sink ends")
    says = f"it answers {status}"
    if 300 <= status < 400:
        says += ", and redirects are not followed"
    return Answer(False, status not in AWAY, says, _retry_after(headers.get("retry-after", "")))


def _retry_after(text: str) -> float:
    """Seconds; 0 for what can't be read."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(seconds, LONGEST_RETRY_AFTER) if seconds > 0 else 0.0


async def _read_some(response: Any) -> None:
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > READ_BYTES:
            return


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What one of the tasks has raised; a receiver that has gone counts more than others."""
    leaves = [
        _first(cast("BaseExceptionGroup[BaseException]", error)) if isinstance(error, BaseExceptionGroup) else error
        for error in group.exceptions
    ]
    return next((error for error in leaves if isinstance(error, Gone | TargetError)), leaves[0])
