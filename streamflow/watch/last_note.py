"""The note that a daemon or worker leaves when it gives up on code that can't be interrupted.

Owns: what that note says. Must not: send it. Called by: daemon and worker, in the watch's thread, before the process
exits.
"""

from __future__ import annotations

from streamflow.machine.open_work import MAX_WORKER_LOSSES
from streamflow.steps.suspects import KEEP_NOTE, Note, Suspect, encode_note
from streamflow.store.connection import Call
from streamflow.store.kernel import Kernel
from streamflow.watch.watch import Culprit


def last_note(kernel: Kernel, member: str, shard: int, culprit: Culprit) -> Call[bytes]:
    """What was seen blocking is proven: the next owner parks a run whose code did, as after its third death, and fails
    a step for the reason."""
    if culprit.seq:
        step = Suspect(shard, culprit.run_id, culprit.seq, 0, culprit.reason)
        note = Note(last=step, running=(step,))
    else:
        note = Note(code=Suspect(shard, culprit.run_id, 0, MAX_WORKER_LOSSES - 1, culprit.reason))
    return kernel.mark_suspects(member, KEEP_NOTE, encode_note(note))
