"""Signal: send a signal to a run.

Owns: its words, and how its value is kept in a file. Must not: know what the value means.
Called by: one, many, its command.
"""

from __future__ import annotations

from typing import Any

import msgspec

from streamflow.actions.action import Action, Runs
from streamflow.client.run import Run
from streamflow.model import codec
from streamflow.model.names import check_name
from streamflow.model.record import OPEN


class Signal(Action, frozen=True, kw_only=True, tag="signal"):
    """`payload`: the encoded value, with which it stands in the file of a bulk. `Signal.of` makes one from a value."""

    signal: str
    payload: bytes

    name = "signal"
    statuses = OPEN
    done = "signalled"
    posts = True

    @classmethod
    def of(cls, name: str, value: Any = None) -> Signal:
        """Raises `InvalidName`, `PayloadInvalid`, `PayloadTooLarge`."""
        return cls(signal=check_name("signal", name), payload=codec.encode(value, f"value of signal {name}"))

    @property
    def value(self) -> Any:
        """As plain data."""
        return codec.decode(self.payload, Any, f"value of signal {self.signal}")

    def question(self, what: str) -> str:
        return f"Send signal {self.signal} to {what}?"

    def words(self) -> list[str]:
        plain = msgspec.to_builtins(self.value, str_keys=True, enc_hook=str)
        return [self.signal] if plain is None else [self.signal, msgspec.json.encode(plain).decode()]

    async def do(self, client: Runs, run: Run[Any], by: str) -> None:
        await run.signal(self.signal, self.value)

    def did(self, run_id: str, value: None) -> str:
        return f"signal {self.signal} sent to {run_id}"

    def plain(self, run_id: str, value: None) -> dict[str, Any]:
        return {"run_id": run_id, "signal": self.signal}
