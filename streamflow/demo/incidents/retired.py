"""The app of `demo --incidents`, release 1.7: it had a workflow that 1.8 has no more, of which runs are still open.

Owns: that workflow. Must not: import anything of the demo (see `shop.py`). Called by: the first daemon of the demo.
"""

from __future__ import annotations

import streamflow as sf

app = sf.App()


@app.step
async def reopen(number: int) -> None:
    pass


@app.workflow
async def invoice_v1(number: int) -> int:
    """Wait until an invoice is paid; if it is cancelled, book it back."""
    try:
        return await sf.signal("paid", int)
    except BaseException:
        await reopen(number)
        raise
