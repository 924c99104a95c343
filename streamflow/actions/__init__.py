"""What operators do to runs: cancel, terminate, signal, retry, fork, pause, resume, forget, purge, restore; to one run,
or to all that match filters; and that they pause a queue or a workflow as a whole.

Every way in (commands, and whatever is built beside them) does it through here, so that each asks the same question,
refuses in the same words, and leaves the same line in the log. From Python:

>>> from streamflow import actions
>>> done = await actions.bulk(client, actions.Retry(reason="the bank is back"), workflow="enrich", status="failed")
>>> print(done.done, done.already, done.failed)
"""

from streamflow.actions.action import Action
from streamflow.actions.cancel import Cancel
from streamflow.actions.forget import Forget
from streamflow.actions.fork import Fork
from streamflow.actions.many import Bulk, BulkOutcome, bulk, freeze, open_file
from streamflow.actions.one import Outcome, ReadOnly, perform
from streamflow.actions.pause import Pause
from streamflow.actions.purge import Purge
from streamflow.actions.restore import Restore
from streamflow.actions.resume import Resume
from streamflow.actions.retry import Retry
from streamflow.actions.signal import Signal
from streamflow.actions.targets import RunFilters
from streamflow.actions.terminate import Terminate
from streamflow.actions.whole import pause_whole, resume_whole

__all__ = [
    "Action",
    "Bulk",
    "BulkOutcome",
    "Cancel",
    "Forget",
    "Fork",
    "Outcome",
    "Pause",
    "Purge",
    "ReadOnly",
    "Restore",
    "Resume",
    "Retry",
    "RunFilters",
    "Signal",
    "Terminate",
    "bulk",
    "freeze",
    "open_file",
    "pause_whole",
    "perform",
    "resume_whole",
]
