"""The process beside a daemon or worker that sends its heartbeats while its interpreter is held, and reports its death.

Owns: when it is silent, and what a death is. Must not: import anything of streamflow (it is a script that imports only
redis), or outlive its parent for longer than the report takes.
Called by: `watch/heartbeat_process.py` starts it as a script and writes to its standard input.

Code in C that holds on to the interpreter stops every thread of its process, also the one that sends heartbeats for a
blocked event loop. The parent writes each heartbeat that it has sent as a line, behind the time (monotonic s), after
one line of settings. When none comes for `limit` seconds, although the parent exists and isn't stopped, this process
repeats the last one with another number, for `longest` seconds at most. The numbers are negative, so that they are
never those of the parent.

A death is seen here within milliseconds, at the end of the standard input; when something that the parent has forked
keeps that open, after `every` seconds in /proc. Then the parent's heartbeat is removed, so that others need not wait
for a time-out, and a worker's is put among the `ended` first. A parent that ends in peace has killed this process
before. A stopped one (SIGSTOP, a debugger) may go on, and is left to the time-out.

Where code of a run or of a step is what holds the interpreter, and longer than it may block its process, nobody else
can end it: this process notes for those who take over whose code it is (`watch/shared_note.py`), if it can tell, and
ends its parent.
"""

from __future__ import annotations

import functools
import json
import linecache
import mmap
import os
import random
import re
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # Where OpenTelemetry is installed, redis-py imports all of it for metrics that nobody asks for here, which takes a
    # third of the time that this process needs to start.
    sys.modules["opentelemetry"] = None  # type: ignore[assignment]

import redis
from redis import backoff, crc, sentinel
from redis import exceptions as redis_errors
from redis import retry as redis_retry

LOOK_AGAIN = 0.01
"""Seconds between two looks whether a process whose end of the pipe is closed has ended."""
TRY_AGAIN = 0.2
"""Seconds between two tries to report a death."""
MOST_WAITS = 20
"""How often a second a thread may wait that is said to sleep in one call; one that asks for the interpreter does it two
hundred times."""
SILENT = 0.75
"""Seconds without a look of the parent's watch after which its threads are looked at: it looks twice a second."""
LONGER = 5.0
"""Seconds after which the interpreter counts as held also if no thread looks as if it were the one."""
PROCESSOR = 0.1
"""A thread that computes gets at least half of this part of one processor's time, whatever else the machine does."""
MOST_OF_IT = 0.6
"""The part of such a time for which something has to be seen."""
ASKED = 2
"""Of so many nodes of a cluster the map is read: one may be cut off."""
REDIRECTIONS = 3
"""How often a node of a cluster may send a call on to another one."""
SHOWN_WITHIN = 0.1
ENDS_WITHIN = 2.0
"""Seconds for writing the stacks, and the traceback with which the parent ends."""


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides what they mean
    lines = Lines()
    settings = json.loads(lines.next(None) or b"{}")
    if not settings:
        return
    parent = Parent(int(settings["parent"]))
    client = client_for(settings)
    script: Any = client.register_script(settings["script"])
    held = Held(settings["held"] | {"every": settings["every"]}, parent, client) if settings["held"] else None
    last: dict[str, Any] = {}
    heard, repeated = time.monotonic(), 0
    while True:
        line = lines.next(settings["every"])
        if line:
            at, _, heartbeat = line.partition(b" ")
            last, heard, repeated = json.loads(heartbeat), float(at), 0
            continue
        if lines.ended or parent.has_ended():
            break
        late = time.monotonic() - heard
        try:
            if last and settings["limit"] <= late < settings["longest"] and not parent.is_stopped():
                repeated += 1
                heartbeat = later(last, late) | {"beat": -(1000 * int(last["beat"]) + repeated)}
                script(keys=[settings["key"]], args=[settings["member"], json.dumps(heartbeat), "", ""])
                if settings.get("sentinels") or settings.get("cluster"):
                    client.close()  # the next one asks them again: a former primary goes on serving for a while
            if held is not None:
                held.look()
        except (redis.RedisError, OSError):
            client.close()  # the server may have been demoted: the next one resolves its name again
    over = time.monotonic() + settings["patience"]
    while not parent.has_ended():
        if time.monotonic() > over:
            return  # it lives, and has closed its end
        time.sleep(LOOK_AGAIN)
    while last:
        heartbeat = later(last, time.monotonic() - heard)
        try:
            if settings["ended"]:
                script(keys=[settings["ended"]], args=[settings["member"], json.dumps(heartbeat), "1", ""])
            script(keys=[settings["key"]], args=[settings["member"], "", "", ""])
            return
        except (redis.RedisError, OSError):
            client.close()
        if time.monotonic() > over:
            return  # the others have noticed by now, if the server is there for them
        time.sleep(TRY_AGAIN)


def later(heartbeat: dict[str, Any], seconds: float) -> dict[str, Any]:
    """`sent` of a worker's heartbeat is when it was sent."""
    return heartbeat | {"sent": heartbeat["sent"] + round(1000 * seconds)} if heartbeat.get("sent") else heartbeat


def client_for(settings: dict[str, Any]) -> Any:
    """Of the server that the URL names, or of the primary that its Sentinels name, or of a cluster."""
    limits = {"socket_timeout": settings["every"], "socket_connect_timeout": 1.0}
    if settings.get("cluster"):
        return Cluster(settings["cluster"], limits)
    found = settings.get("sentinels")
    client: Any = redis.Redis.from_url(settings["url"], **limits)  # pyright: ignore[reportUnknownMemberType]
    if not found:
        return client
    options = {name: value for name, value in client.get_connection_kwargs().items() if name not in ("host", "port")}
    tls = {name: value for name, value in options.items() if name.startswith("ssl")}
    if found["is_secure"]:
        tls["ssl"] = options["ssl"] = True
    credentials = {"username": found["username"] or None, "password": found["password"] or None}
    asked: Any = Sentinels(
        [tuple(address) for address in found["addresses"]], sentinel_kwargs={**limits, **credentials, **tls}
    )
    return asked.master_for(found["service"], **options)


class Sentinels(sentinel.Sentinel):
    """redis-py's believes the first one that answers, which may have been cut off, and asks for all services, which not
    every user may."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        answers: list[tuple[int, str, int]] = []
        errors: list[Exception] = []
        sentinels: list[Any] = self.sentinels  # pyright: ignore[reportUnknownMemberType]
        for asked in sentinels:
            try:
                state = asked.execute_command("SENTINEL MASTER", service_name)
                answers.append((int(state["config-epoch"]), str(state["ip"]), int(state["port"])))
            except (redis.RedisError, OSError) as error:
                errors.append(error)
        if not answers:
            raise sentinel.MasterNotFoundError(f"no Sentinel names a primary of {service_name}: {errors}")
        _, host, port = max(answers)
        return host, port


class Cluster:
    """The nodes of a cluster, as much as scripts need of them that have one key each. redis-py's asks for more than
    this user may, CLUSTER NODES, and for the commands of the server.

    `settings`: `addresses` of some nodes, and what stands `before` and `after` the address in the URL of one.
    """

    def __init__(self, settings: dict[str, Any], limits: dict[str, Any]) -> None:
        self._named = [(str(host), int(port)) for host, port in settings["addresses"]]
        self._known: list[tuple[str, int]] = []
        """The primaries and replicas that answered or were named by others, when the map was read last."""
        self._settings = settings
        self._limits = limits
        self._owners: dict[int, tuple[str, int]] = {}
        self._nodes: dict[tuple[str, int], Any] = {}

    def register_script(self, source: str) -> Callable[..., None]:
        return functools.partial(self._run, source)

    def close(self) -> None:
        """Forget who has what, too."""
        for node in self._nodes.values():
            node.close()
        self._nodes.clear()
        self._owners.clear()

    def _run(self, source: str, keys: list[str], args: list[Any]) -> None:
        """Raises `RedisError` or `OSError`."""
        slot = crc.key_slot(keys[0].encode())
        address, is_moving = self._owners.get(slot) or self._owner(slot), False
        for _ in range(REDIRECTIONS):
            node = self._node(address)
            script: Any = node.register_script(source)
            try:
                if not is_moving:
                    script(keys=keys, args=args)
                else:
                    node.script_load(source)
                    with node.pipeline(transaction=False) as asking:
                        asking.execute_command("ASKING")
                        asking.evalsha(script.sha, len(keys), *keys, *args)
                        asking.execute()
                return
            except redis_errors.AskError as error:  # or MOVED, which is a kind of it
                told: Any = error
                address = str(told.host) or address[0], int(told.port)
                is_moving = not isinstance(error, redis_errors.MovedError)
                if not is_moving:
                    self._owners[slot] = address
        raise redis.ConnectionError(f"slot {slot} was sent on {REDIRECTIONS} times")

    def _owner(self, slot: int) -> tuple[str, int]:
        """By the newest claim to it among the answers."""
        claims: list[tuple[int, tuple[str, int]]] = []
        answers = 0
        known = random.sample(self._known, len(self._known))
        for address in dict.fromkeys([*known, *self._named]):
            try:
                found: dict[str, Any] = self._node(address).execute_command("CLUSTER NODES")
            except (redis.RedisError, OSError):
                continue
            places = {name: self._address(name, address) for name in found}
            self._known = [place for place in places.values() if place[1]]
            claims += [
                (int(node["epoch"]), places[name])
                for name, node in found.items()
                if any(int(part[0]) <= slot <= int(part[-1]) for part in node["slots"])
            ]
            answers += 1
            if answers == ASKED:
                break
        if not claims:
            raise redis.ConnectionError(f"nobody is known to have slot {slot}")
        self._owners[slot] = max(claims)[1]
        return self._owners[slot]

    @staticmethod
    def _address(name: str, asked: tuple[str, int]) -> tuple[str, int]:
        """An empty host is the one that was asked. Port 0: it has no address now."""
        host, _, port = name.rpartition(":")
        return host or asked[0], int(port or 0)

    def _node(self, address: tuple[str, int]) -> Any:
        if address not in self._nodes:
            host, port = address
            place = f"{f'[{host}]' if ':' in host else host}:{port}"
            url = f"{self._settings['before']}{place}{self._settings['after']}"
            # The next try of `main` may find another node: redis-py would try this one for seconds.
            never = redis_retry.Retry(backoff.NoBackoff(), 0)
            self._nodes[address] = redis.Redis.from_url(url, retry=never, **self._limits)  # pyright: ignore[reportUnknownMemberType]
        return self._nodes[address]


class Code(NamedTuple):
    """Whose code holds the interpreter: the run, its shard, the number of the step, or 0. `thread`: Python's number of
    the thread, 0 for the main one. Without a run it isn't known."""

    run_id: str = ""
    shard: int = 0
    seq: int = 0
    thread: int = 0


class Held:
    """Code in C that holds on to the interpreter of the parent: of a run or of a step on the event loop, whose code is
    noted slice by slice, or anything else (`Asked`)."""

    def __init__(self, settings: dict[str, Any], parent: Parent, client: Any) -> None:
        self._settings = settings
        self._parent = parent
        size = struct.calcsize(settings["format"]) + settings["threads"] * struct.calcsize(settings["thread_format"])
        self._memory = mmap.mmap(settings["note"], size, prot=mmap.PROT_READ)
        self._asked = Asked(settings, parent, self._memory)
        self._mark: Any = client.register_script(settings["script"])
        self._seen: tuple[float, float] = (0.0, 0.0)
        """When the parent's watch looked last, and since when the code runs."""
        self._held = 0.0
        """Seconds for which the interpreter has been held since."""
        self._now = 0.0
        self._used = 0.0
        self._waits = 0
        """The time of the last look, and what the parent had used and how often it had waited (`Parent.use`)."""

    def look(self) -> None:
        """Note the culprit and end the parent, if it is time. Raises `RedisError`: then nothing has ended."""
        found = self._culprit() or self._asked.holder()
        if found is None:
            return
        if not found.run_id:
            self._end()
            return
        os.ftruncate(self._settings["stack"], 0)
        os.lseek(self._settings["stack"], 0, os.SEEK_SET)  # where the parent writes, too
        os.kill(self._parent.number, self._settings["show"])
        time.sleep(SHOWN_WITHIN)
        run_id, shard, seq, thread = found
        stacks = os.pread(self._settings["stack"], 1 << 16, 0).decode(errors="replace")
        line = step_line(stacks, self._settings, thread) if seq else workflow_line(stacks, self._settings)
        seconds = time.monotonic() - (self._asked.looked if thread else self._seen[1])
        whose = f"step {seq} of run {run_id}" if seq else "its code"
        place = self._settings["place"]
        reason = f"{whose} has blocked its {place} for {seconds:.1f} s at {line}, in C, and can't be interrupted"
        suspect = {"run_id": run_id, "shard": shard, "seq": seq, "reason": reason}
        if seq:
            note = self._settings["body_of_step"]
            note["last"] |= suspect
            note["running"] = [note["last"]]
        else:
            note = self._settings["body"]
            note["code"] |= suspect
        self._mark(keys=[self._settings["key"]], args=[self._settings["seconds"], json.dumps(note)])
        if (self._asked.holder() if thread else self._culprit()) == found:
            self._end()
        else:  # it has given way, as a call does that a signal interrupts
            self._mark(keys=[self._settings["key"]], args=[self._settings["seconds"], ""])

    def _culprit(self) -> Code | None:
        """Only the processor time of the parent's main thread counts, since a machine may be without any, and time in
        which that thread sleeps in one call: while another thread holds the interpreter, it wakes many times a second.
        """
        looked, executes, since, limit, shard, seq, run_id = struct.unpack_from(self._settings["format"], self._memory)
        now, (state, used, waits) = time.monotonic(), self._parent.use()
        passed, before = now - self._now, self._used
        if self._seen != (looked, since):
            self._seen, self._held = (looked, since), 0.0
        elif used > before:
            self._held += min(used - before, passed)
        elif state == "S" and waits - self._waits <= MOST_WAITS * passed:
            self._held += min(passed, 2 * self._settings["every"])  # this process may have been paused, too
        self._now, self._used, self._waits = now, used, waits
        if not executes or min(now - since, self._held) < limit + self._settings["after"]:
            return None
        return Code(run_id.rstrip(b"\0").decode(errors="replace"), shard, seq)

    def _end(self) -> None:
        for number in (self._settings["end"], signal.SIGKILL):
            os.kill(self._parent.number, number)
            over = time.monotonic() + ENDS_WITHIN
            while time.monotonic() < over:
                if self._parent.has_ended():
                    return
                time.sleep(LOOK_AGAIN)


class Asked:
    """Code in C that holds the interpreter, seen by the watch's asking for it in vain: a plain step's, or of something
    about which nothing is noted, as tasks that a step has made."""

    def __init__(self, settings: dict[str, Any], parent: Parent, memory: mmap.mmap) -> None:
        self._settings = settings
        self._parent = parent
        self._memory = memory
        self._thread = struct.Struct(settings["thread_format"])
        self.looked = 0.0
        """When the watch has looked last..."""
        self._asked = 0.0
        """...for how many seconds since it was seen to ask for the interpreter..."""
        self._asks: dict[int, float] = {}
        self._busy: dict[int, float] = {}
        self._asleep: dict[int, float] = {}
        """...and for how many of those each thread did so, too, used the processor, or slept in one call."""
        self._now = 0.0
        self._uses: dict[int, tuple[str, float, int]] = {}

    def holder(self) -> Code | None:
        """Whose code it is, if it has held the interpreter for longer than it may.

        Only the time counts in which the watch wakes all the time: a machine may be without processor time.
        """
        looked, executes, *_ = struct.unpack_from(self._settings["format"], self._memory)
        now = time.monotonic()
        if looked != self.looked:
            self.looked, self._asked = looked, 0.0
            self._asks, self._busy, self._asleep, self._uses = {}, {}, {}, {}
        if not self._settings["step_limit"] or now - looked < SILENT:
            return None
        self._see(now)
        silent = now - looked
        if silent < self._settings["step_limit"] or self._asked < MOST_OF_IT * silent:
            return None
        if executes and self._asks.get(self._parent.number, 0.0) < self._asked / 2:
            return None  # it is the main thread, of which is noted whose code it executes
        steps = {number: code for number, code in self._table()[1:] if number}
        most = max([PROCESSOR * self._asked, *self._busy.values()])
        busy = [number for number, seconds in self._busy.items() if seconds > most / 2]
        asleep = [number for number, seconds in self._asleep.items() if seconds > self._asked / 2 and number in steps]
        if len(busy) > 1:  # code in C that has let go of the interpreter computes, too
            busy = [number for number in busy if number in steps or number == self._parent.number]
        suspects = busy or asleep
        if not suspects and silent < self._settings["step_limit"] + LONGER:
            return None
        return steps.get(suspects[0], Code()) if len(suspects) == 1 else Code()

    def _see(self, now: float) -> None:
        passed, before = now - self._now, self._uses
        uses = self._uses = {number: self._parent.use(number) for number in self._parent.threads()}
        self._now = now
        watch = self._table()[0][0]
        if watch not in before or watch not in uses:
            return
        if uses[watch][2] - before[watch][2] <= MOST_WAITS * passed:
            return
        passed = min(passed, 2 * self._settings["every"])  # this process may have been paused, too
        self._asked += passed
        for number in uses.keys() & before.keys():
            (state, used, waits), (_, used_before, waited_before) = uses[number], before[number]
            if waits - waited_before > MOST_WAITS * passed:
                self._asks[number] = self._asks.get(number, 0.0) + passed
            elif used > used_before:
                self._busy[number] = self._busy.get(number, 0.0) + min(used - used_before, passed)
            elif state == "S":
                self._asleep[number] = self._asleep.get(number, 0.0) + passed

    def _table(self) -> list[tuple[int, Code]]:
        found: list[tuple[int, Code]] = []
        for number in range(self._settings["threads"]):
            place = struct.calcsize(self._settings["format"]) + number * self._thread.size
            system, thread, shard, seq, run_id = self._thread.unpack_from(self._memory, place)
            found.append((system, Code(run_id.rstrip(b"\0").decode(errors="replace"), shard, seq, thread)))
        return found


def workflow_line(stacks: str, settings: dict[str, Any]) -> str:
    """The first line of a workflow, as `watch/blocker.py` finds it."""
    for stack in stacks.split("\n\n"):
        inside = False
        for name, number in reversed(re.findall(r'^  File "(.*)", line (\d+) in ', stack, re.MULTILINE)):
            if inside and not name.startswith(settings["package"]):
                return f"{name}:{number} ({linecache.getline(name, int(number)).strip()})"
            inside = inside or name.startswith(settings["machine"])
    return "an unknown line"


def step_line(stacks: str, settings: dict[str, Any], thread: int = 0) -> str:
    """The innermost line of the user's code in a step on the event loop, or of a plain one in this thread; without such
    code, that of a library."""
    for stack in stacks.split("\n\n"):
        number = re.search(r"hread 0x([0-9a-f]+)", stack)
        if thread and (number is None or int(number[1], 16) != thread):
            continue
        inner: list[tuple[str, str]] = []
        for name, number, function in re.findall(r'^  File "(.*)", line (\d+) in (.*)$', stack, re.MULTILINE):
            if (name, function) == (settings["executor"], "_call" if thread else "_run"):
                own = [one for one in inner if not one[0].startswith((*settings["libraries"], "<"))]
                chosen = own or inner
                if not chosen:
                    break
                name, number = chosen[0]
                return f"{name}:{number} ({linecache.getline(name, int(number)).strip()})"
            if not name.startswith(settings["package"]):
                inner.append((name, number))
    return "an unknown line"


class Lines:
    """The lines of the standard input."""

    def __init__(self) -> None:
        self.ended = False
        self._data = b""

    def next(self, seconds: float | None) -> bytes:
        """The next line; empty if none came within so many seconds, or it has `ended`."""
        while b"\n" not in self._data and not self.ended:
            ready, _, _ = select.select([0], [], [], seconds)
            if not ready:
                return b""
            data = os.read(0, 65_536)
            self.ended = not data
            self._data += data
        line, newline, rest = self._data.partition(b"\n")
        if not newline:
            return b""
        self._data = rest
        return line


class Parent:
    """A process, distinguished from a later one with its number by when it began."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._began = self._look()[1]

    def has_ended(self) -> bool:
        """Also one that nobody has waited for yet, and one of which the kernel writes a core dump: a long time."""
        state, began = self._look()
        return state in "ZX" or began != self._began or self._is_dumped()

    def is_stopped(self) -> bool:
        """By SIGSTOP or a debugger: to the others it is dead then."""
        return self._look()[0] in "TtZX"

    def threads(self) -> list[int]:
        try:
            return [int(thread.name) for thread in Path(f"/proc/{self.number}/task").iterdir()]
        except OSError:
            return []

    def use(self, number: int = 0) -> tuple[str, float, int]:
        """Of its main thread, or of this one: the state, the processor time (s), and how often it has waited."""
        thread = Path(f"/proc/{self.number}/task/{number or self.number}")
        try:
            fields = (thread / "stat").read_text(errors="replace").rpartition(")")[2].split()
            waits = re.search(r"^voluntary_ctxt_switches:\t(\d+)", (thread / "status").read_text(), re.MULTILINE)
            used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            return fields[0], used, int(waits[1]) if waits else 0
        except (OSError, IndexError):
            return "X", 0.0, 0

    def _look(self) -> tuple[str, str]:
        try:
            fields = Path(f"/proc/{self.number}/stat").read_text(errors="replace").rpartition(")")[2].split()
            return fields[0], fields[19]
        except (OSError, IndexError):
            return "X", ""

    def _is_dumped(self) -> bool:
        try:
            return "CoreDumping:\t1" in Path(f"/proc/{self.number}/status").read_text(errors="replace")
        except OSError:
            return True


if __name__ == "__main__":
    sys.exit(main())
