"""What this process is about to run that may end it: the note that its successor reads, and the trials of steps.

Owns: the note of a daemon or worker on the server, and when an attempt whose predecessor was lost with its process may
start. Must not: know keys, decide what becomes of a culprit (the run does).
Called by: the owner and the worker (submit such attempts), the owner (around code of a run), takeover and claims (read
the notes of processes that died).

In normal operation nothing is noted: when a process dies, nobody knows what killed it. Then whatever it had in hand is
suspect, and its successors go carefully. What they are about to run is noted first, so that another death tells more:

    code of a run    one run at a time; it decides within milliseconds. No step begins until it is through, and none of
                     it is run in the first quarter of a second of a step's trial: one death has one culprit
    a step that      one after another, and only the note names the one that has begun last: what kills at once is
    was lost once    found by the second death
    one that was     when all others have ended or had their time: if the process dies once more as it begins, it
    begun last       fails
    a step that was  half of them first, the others when these have ended or had their time, which doubles with each
    lost more often  death: what kills later is found in fewer and fewer, until it runs alone
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from hashlib import sha256

import anyio
import msgspec

from streamflow.errors import StoreError
from streamflow.loops import wait_until
from streamflow.model.codec import DECODE_ERRORS
from streamflow.steps.executor import StepExecutor
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel
from streamflow.workflow.actions import StepJob

TRIAL = 0.25
ALL_TRIALS = 3.0
"""Seconds for which a step that has begun last is the one to blame; and about for which all are, if there are many."""
HALF_TIME = 2.0
LONGEST_HALF_TIME = 64.0
"""Seconds that half of the steps that were lost twice get before the others start; twice as many with each loss."""
HOLD = 3.0
"""Seconds for which a step that is to blame waits for all others to end: the process may end with it."""
LOOK_EVERY = 0.005
"""Seconds between two looks whether steps have ended."""
LONGEST_MARK = 60.0
"""Seconds after its start for which a step can be to blame: later deaths are not its work, unless..."""
ALWAYS_AFTER = 5
"""...so many processes have died while it ran."""
MOST_WAITING = 256
"""Steps that wait which a note names at most."""
KEEP_NOTE = 86_400
"""Seconds for which a note is kept on the server."""


class Suspect(msgspec.Struct, frozen=True):
    """The code of a run (`seq` is 0) or one of its steps, and how many processes are known to have died of it. `shard`:
    of a daemon; unused at a worker. `reason`: what is known about it, if more is than that it ran."""

    shard: int
    run_id: str
    seq: int = 0
    deaths: int = 0
    reason: str = ""
    commit: str = ""
    """The id of the commit with what the code decides: it has got through if the shard's last commit is this one."""
    created: int = 0
    """Of the run, ms as in its header: a later run of the id is not to blame. 0: not known."""

    @property
    def step(self) -> tuple[str, int]:
        return self.run_id, self.seq


class Note(msgspec.Struct, frozen=True):
    """What would be suspect if the process died now."""

    code: Suspect | None = None
    """The run whose code it runs: nothing else has begun for a while."""
    last: Suspect | None = None
    """The step that has begun last."""
    running: tuple[Suspect, ...] = ()
    """All steps that have begun, the last one included, but for..."""
    older: tuple[Suspect, ...] = ()
    """...those that have run for so long that they are not to blame."""
    waiting: tuple[Suspect, ...] = ()
    """Code that has not been run again yet, and steps that have not begun."""

    def blames(self, run_id: str, seq: int) -> bool:
        """Whether this step has most probably ended the process: not if code of a run was being run."""
        if self.code is not None:
            return False
        if self.last is not None:
            return self.last.step == (run_id, seq)
        return [suspect.step for suspect in self.running] == [(run_id, seq)]

    def proof(self, run_id: str, seq: int) -> str:
        """What the process knew when it gave up on this step; empty if it is only suspect."""
        return self.last.reason if self.last is not None and self.last.step == (run_id, seq) else ""

    def has_begun(self, run_id: str, seq: int) -> bool:
        return any(suspect.step == (run_id, seq) for suspect in (*self.running, *self.older))

    def is_waiting(self, run_id: str, seq: int) -> bool:
        return any(suspect.step == (run_id, seq) for suspect in self.waiting)


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Note)


def encode_note(note: Note) -> bytes:
    """Empty for an empty note."""
    return _encode(note) if note != Note() else b""


def decode_note(data: bytes | None) -> Note:
    """An empty note for nothing, and for what another version wrote."""
    try:
        return _decoder.decode(data) if data else Note()
    except DECODE_ERRORS:
        return Note()


class _Trial(msgspec.Struct, eq=False):
    shard: int
    run_id: str
    job: StepJob
    since: float = 0.0
    """When it was noted (monotonic s)."""
    begun: bool = False
    over: bool = False
    """It was cancelled, or has another owner."""

    @property
    def suspect(self) -> Suspect:
        return Suspect(self.shard, self.run_id, self.job.seq, self.job.lost)


async def read_notes(store: Store, kernel: Kernel, members: Iterable[str]) -> dict[str, Note]:
    """What processes that died were running, by member or consumer. A note that can't be read is empty."""
    names = [name for name in set(members) if name]
    calls = [Call.plain("GET", kernel.keys.suspects(name)) for name in names]
    answers: list[bytes | StoreError | None] = await store.send(calls) if calls else []
    return {
        name: decode_note(None if isinstance(answer, StoreError) else answer)
        for name, answer in zip(names, answers, strict=True)
    }


def _nothing() -> None:
    """A callback that is not connected."""


class Suspects:
    """`member`: the name under which this process's note is kept. `code_waits()`: whether code of suspect runs waits or
    is being run; `on_tried()` is called when such code may be run again. The owner connects them; a worker runs no such
    code."""

    def __init__(self, executor: StepExecutor, store: Store, kernel: Kernel, member: str) -> None:
        self.code_waits: Callable[[], bool] = lambda: False
        self.on_tried: Callable[[], None] = _nothing
        self.trying = False
        """Steps have begun a moment ago, and are the ones to blame if the process dies: no suspect code is run."""
        self._executor = executor
        self._store = store
        self._kernel = kernel
        self._member = member
        self._known: dict[tuple[int, str], Suspect] = {}
        self._waiting: list[_Trial] = []
        self._started: list[_Trial] = []
        self._last: _Trial | None = None
        self._code: Suspect | None = None
        self._noted = b""
        self._writing = anyio.Lock()
        self._submitted = anyio.Event()
        self._stale = anyio.Event()

    # --- what is known ------------------------------------------------------------------------------------------------

    def learn(self, suspect: Suspect) -> None:
        """A process that died has left this suspect: the code of a run."""
        self._known[suspect.shard, suspect.run_id] = suspect

    def deaths(self, shard: int, run_id: str) -> int:
        """How many processes are known to have died while they ran the code of this run."""
        known = self._known.get((shard, run_id))
        return 0 if known is None else known.deaths

    def acquit(self, shard: int, run_id: str) -> None:
        """The code of the run was run, or the run is parked."""
        self._known.pop((shard, run_id), None)

    def forget_shards(self, shards: Collection[int]) -> None:
        """These shards have other owners, or none."""
        self._known = {key: suspect for key, suspect in self._known.items() if key[0] not in shards}
        for trial in (*self._waiting, *self._started):
            trial.over = trial.over or trial.shard in shards
        self._waiting = [trial for trial in self._waiting if not trial.over]
        self._stale.set()  # it may name code or steps of these shards, and have another owner's read it as true

    # --- the code of a run --------------------------------------------------------------------------------------------

    def is_of_another_run(self, shard: int, run_id: str, created: int) -> bool:
        """Whether what is known about this id is about an earlier run of it. `created`: of the present one, 0 if that
        isn't known."""
        known = self._known.get((shard, run_id))
        return known is not None and 0 not in (created, known.created) and created != known.created

    async def mark_code(self, shard: int, run_id: str, commit: str, created: int = 0) -> None:
        """Note that code of this run is about to be run, until `code_ended`. Nothing else may run code meanwhile.
        `commit`: the id of the commit that comes of it; `created`: of the run, 0 if that isn't known."""
        known = self._known.get((shard, run_id))
        created = created or (0 if known is None else known.created)
        self._code = Suspect(shard, run_id, 0, max(1, self.deaths(shard, run_id)), commit=commit, created=created)
        await self._note()

    def code_ended(self, *, more: bool) -> None:
        """Have the note written again, unless `more` such code follows at once."""
        self._code = None
        if not more:
            self._stale.set()

    async def run_notes(self) -> None:
        """Write the note when code has ended."""
        while True:
            await self._stale.wait()
            self._stale = anyio.Event()
            await self._note()

    # --- steps --------------------------------------------------------------------------------------------------------

    def submit(self, shard: int, run_id: str, job: StepJob) -> None:
        """Start the attempt when its trial begins, if a process died with the one before; at once otherwise."""
        if not job.lost:
            self._executor.submit(shard, run_id, job)
            return
        for trial in self._waiting:
            if (trial.run_id, trial.job.seq) == (run_id, job.seq):
                trial.shard, trial.job = shard, job
                return
        self._waiting.append(_Trial(shard, run_id, job))
        self._submitted.set()

    def cancel(self, run_id: str, seq: int) -> None:
        """Cancel an attempt that runs or waits for its trial, without an outcome."""
        for trial in (*self._waiting, *self._started):
            trial.over = trial.over or (trial.run_id, trial.job.seq) == (run_id, seq)
        if self._waiting:
            self._waiting = [trial for trial in self._waiting if not trial.over]
        self._executor.cancel(run_id, seq)

    async def run(self) -> None:
        while True:
            await self.run_once()

    async def run_once(self) -> None:
        """The next trial, of one step or of some; without one that waits, write the note again when it isn't true."""
        if not self._waiting:
            await self._rest()
            return
        new = [trial for trial in self._waiting if not trial.job.blamed and trial.job.lost == 1]
        others = [trial for trial in self._waiting if not trial.job.blamed and trial.job.lost > 1]
        blamed = [trial for trial in self._waiting if trial.job.blamed]
        if new:
            await self._try_one(new[0], min(TRIAL, ALL_TRIALS / len(self._waiting)))
        elif others and blamed:
            await self._try(others, TRIAL)
        elif others:
            await self._try_half(others)
        else:
            with anyio.move_on_after(HOLD):
                await wait_until(lambda: not self._executor.running or self._waiting != blamed, LOOK_EVERY)
            if self._waiting and all(trial.job.blamed for trial in self._waiting):
                await self._try_one(self._waiting[0], TRIAL)

    async def _try_one(self, trial: _Trial, seconds: float) -> None:
        self._last = trial
        try:
            await self._try([trial], seconds)
        finally:
            self._last = None

    async def _try(self, trials: list[_Trial], seconds: float) -> None:
        """Start steps when no suspect code is run, and give them so many seconds in which none is."""
        with anyio.move_on_after(HOLD):  # code that waits for longer must not hold them up
            await wait_until(lambda: not self.code_waits(), LOOK_EVERY)
        self.trying = True
        try:
            await self._begin(trials)
            await self._end_or_time(trials, seconds)
        finally:
            self.trying = False
            self.on_tried()

    async def _end_or_time(self, trials: list[_Trial], seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await wait_until(lambda: not any(self._runs(trial) for trial in trials), LOOK_EVERY)

    async def _try_half(self, trials: list[_Trial]) -> None:
        """Those that were lost least often first. Each time it is another half: the attempt's number is part of the
        order."""
        least = min(trial.job.lost for trial in trials)
        tier = [trial for trial in trials if trial.job.lost == least]
        tier.sort(key=lambda trial: sha256(f"{trial.run_id}/{trial.job.seq}/{trial.job.attempt}".encode()).digest())
        half = tier[: len(tier) // 2] or tier
        await self._try(half, TRIAL)
        await self._end_or_time(half, min(HALF_TIME * 2 ** (least - 2), LONGEST_HALF_TIME) - TRIAL)

    async def _begin(self, trials: list[_Trial]) -> None:
        """Start steps when the note names them."""
        now = time.monotonic()
        self._waiting = [trial for trial in self._waiting if trial not in trials]
        for trial in trials:
            trial.since = now
        self._started += trials
        await self._note()
        for trial in trials:
            if not trial.over:
                trial.begun = True
                self._executor.submit(trial.shard, trial.run_id, trial.job)

    async def _rest(self) -> None:
        self._submitted = anyio.Event()
        await self._note()
        if self._noted:
            with anyio.move_on_after(TRIAL):
                await self._submitted.wait()
        else:
            await self._submitted.wait()

    def _runs(self, trial: _Trial) -> bool:
        return not trial.over and (
            not trial.begun or self._executor.runs(trial.run_id, trial.job.seq, trial.job.attempt)
        )

    def _present_note(self) -> Note:
        now = time.monotonic()
        self._started = [trial for trial in self._started if self._runs(trial)]
        older = [
            trial for trial in self._started if now - trial.since >= LONGEST_MARK and trial.job.lost < ALWAYS_AFTER
        ]
        code = [
            suspect
            for suspect in self._known.values()
            if self._code is None or (suspect.shard, suspect.run_id) != (self._code.shard, self._code.run_id)
        ]
        return Note(
            self._code,
            self._last.suspect if self._last is not None and self._last in self._started else None,
            tuple(trial.suspect for trial in self._started if trial not in older),
            tuple(trial.suspect for trial in older),
            (*code, *(trial.suspect for trial in self._waiting[:MOST_WAITING])),
        )

    async def _note(self) -> None:
        async with self._writing:
            data = encode_note(self._present_note())
            if data != self._noted:
                call = self._kernel.mark_suspects(self._member, KEEP_NOTE, data)
                await self._store.send([call], patience=math.inf)
                self._noted = data
