"""What a workflow takes and shows, with its types: signals, questions, published values.

Owns: the definitions that user code makes, which of them a workflow declares, and the refusal of others.
Must not: send or receive anything, know how a run waits. Called by: the app, which keeps what is declared, the
functions of workflow code, and the handles of runs, which refuse at the door what no code could take.

    approve = sf.SignalDefinition("approve", bool)     @app.workflow(signals=[approve])
    await run.signal(approve, True)          →  `Declared.payload`   →  its name, and the value's payload, checked
    await sf.signal(approve, timeout=3600)   →  `Declared.expected`  →  name and type of the wait
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar, overload

from msgspec import UNSET

from streamflow.errors import UsageError
from streamflow.model import codec
from streamflow.model.names import check_name
from streamflow.suggestions import did_you_mean

T = TypeVar("T")
A = TypeVar("A")


class _Definition:
    """A name, and the type of the values that go with it."""

    __slots__ = ("name", "type")

    what = ""
    """As errors call it."""

    def __init__(self, name: str, type: Any = Any) -> None:
        self.name = check_name(self.what, name)
        self.type = type
        codec.decoder_for(type)  # a type of which no value can be decoded is refused where it is defined

    def is_like(self, other: _Definition) -> bool:
        return self.name == other.name and self.type == other.type

    def __repr__(self) -> str:
        return f"<{self.what} {self.name}: {codec.type_name(self.type)}>"


class SignalDefinition(_Definition, Generic[T]):
    """A signal that a workflow takes: its name, and the type of its value.

    Given instead of a name to `sf.signal`, `run.signal`, `sf.send_signal` and a child's `signal`, it types the call,
    and a value of another type is refused where it is sent. Declare it with `@app.workflow(signals=[…])`, and calls
    that give the name alone are checked as well. Raises `InvalidName`, and `PayloadInvalid` for a type that can't be
    decoded.

    >>> approve = sf.SignalDefinition("approve", bool)
    >>> approved = await sf.signal(approve, timeout=3600)
    >>> await run.signal(approve, True)
    """

    __slots__ = ()

    what = "signal"

    @overload
    def __init__(self, name: str, type: type[T]) -> None: ...
    @overload
    def __init__(self, name: str, type: Any = ...) -> None: ...
    def __init__(self, name: str, type: Any = Any) -> None:
        super().__init__(name, type)


class QuestionDefinition(_Definition, Generic[T, A]):
    """A question that a workflow answers: its name, the type of what is asked, and that of the answer.

    Given instead of a name to `sf.question` and `run.ask`, it types both sides: a value or an answer of another type is
    refused where it is given. Declare it with `@app.workflow(questions=[…])`. Raises `InvalidName`, and
    `PayloadInvalid` for a type that can't be decoded.

    >>> reserve = sf.QuestionDefinition("reserve", int, answer=bool)
    >>> question = await sf.question(reserve)
    >>> question.answer(question.value <= left)
    >>> granted = await run.ask(reserve, 2)
    """

    __slots__ = ("answer",)

    what = "question"

    @overload
    def __init__(self, name: str, type: type[T], answer: type[A]) -> None: ...
    @overload
    def __init__(self, name: str, type: Any = ..., answer: Any = ...) -> None: ...
    def __init__(self, name: str, type: Any = Any, answer: Any = Any) -> None:
        super().__init__(name, type)
        self.answer = answer
        codec.decoder_for(answer)

    def is_like(self, other: _Definition) -> bool:
        return super().is_like(other) and isinstance(other, QuestionDefinition) and self.answer == other.answer  # pyright: ignore[reportUnknownMemberType]


class PublishedDefinition(_Definition, Generic[T]):
    """A value that a workflow publishes: its key, and its type.

    Given instead of a key to `sf.publish` and `run.read`, it types both. Declare it with
    `@app.workflow(published=[…])`. Raises `InvalidName`, and `PayloadInvalid` for a type that can't be decoded.

    >>> progress = sf.PublishedDefinition("progress", int)
    >>> sf.publish(progress, 3)
    >>> done = await run.read(progress, default=0)
    """

    __slots__ = ()

    what = "key"

    @overload
    def __init__(self, name: str, type: type[T]) -> None: ...
    @overload
    def __init__(self, name: str, type: Any = ...) -> None: ...
    def __init__(self, name: str, type: Any = Any) -> None:
        super().__init__(name, type)


_OF = {"signal": "value of signal", "question": "value of question", "key": "published value"}
_TAKES = {"signal": "takes no signal", "question": "answers no question", "key": "publishes nothing under"}
_DECLARED = {"signal": "signals", "question": "questions", "key": "published"}
_CLASSES: dict[str, type[Any]] = {
    "signal": SignalDefinition,
    "question": QuestionDefinition,
    "key": PublishedDefinition,
}


class Declared:
    """What a workflow or reducer declares. Of a kind that it doesn't declare (None) every name is accepted.

    `who`: as errors call it, `workflow order`."""

    __slots__ = ("_known", "who")

    def __init__(
        self,
        who: str = "",
        signals: Iterable[SignalDefinition[Any]] | None = None,
        questions: Iterable[QuestionDefinition[Any, Any]] | None = None,
        published: Iterable[PublishedDefinition[Any]] | None = None,
    ) -> None:
        """Raises `UsageError`."""
        self.who = who
        self._known: dict[str, dict[str, Any]] = {}
        for what, given in (("signal", signals), ("question", questions), ("key", published)):
            if given is not None:
                self._known[what] = _by_name(who, what, given)

    def of(self, what: str) -> Mapping[str, Any] | None:
        """The definitions of a kind (`signal`, `question`, `key`) by name; None if it isn't declared."""
        return self._known.get(what)

    def find(self, what: str, given: Any) -> tuple[str, Any]:
        """Name and definition of what is given by either; None as definition of a name of which nothing is known.

        Raises `UsageError` for a name that isn't declared, or that is declared with another type; `InvalidName`.
        """
        name, definition = given, None
        if isinstance(given, _Definition):
            if not isinstance(given, _CLASSES[what]):
                raise UsageError(f"{given!r} is given for a {what}: pass an sf.{_CLASSES[what].__name__}, or a name")
            name, definition = given.name, given
        known = self._known.get(what)
        if known is None:
            return check_name(what, name), definition
        found = known.get(check_name(what, name))
        if found is None:
            raise UsageError(not_declared(self.who, what, name, known))
        if definition is not None and not found.is_like(definition):
            raise UsageError(f"{self.who} declares {found!r}, and {definition!r} is given")
        return name, found

    def expected(self, what: str, given: Any, type: Any) -> tuple[str, Any, Any]:
        """As `find`, for code that waits: name, type of the value, and definition. `type` is UNSET, or given beside it.

        Raises `UsageError` for another type than that of the definition, `PayloadInvalid` if it can't be decoded.
        """
        name, definition = self.find(what, given)
        if definition is None:
            wanted = Any if type is UNSET else type
            codec.decoder_for(wanted)
            return name, wanted, None
        if type is not UNSET and type != definition.type:
            is_type = codec.type_name(definition.type)
            raise UsageError(f"{what} {name} is declared as {is_type}, and awaited as {codec.type_name(type)}")
        return name, definition.type, definition

    def payload(self, what: str, given: Any, value: object) -> tuple[str, bytes]:
        """As `find`, for who sends: the name, and the payload of a value. Raises `PayloadInvalid`, also for one of
        another type than is defined, and `PayloadTooLarge`."""
        if type(given) is str and what not in self._known:  # most values are of nothing that is declared
            return check_name(what, given), codec.encode(value, f"{_OF[what]} {given}")
        name, definition = self.find(what, given)
        return name, codec.encode_as(value, Any if definition is None else definition.type, f"{_OF[what]} {name}")


UNDECLARED = Declared()
"""Of a run whose workflow isn't known here."""


def not_declared(who: str, what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that a workflow doesn't declare."""
    names = ", ".join(known)
    declares = f"It declares: {names}" if names else f"It declares no {_DECLARED[what]}"
    return f"{who} {_TAKES[what]} {name!r}{did_you_mean(name, known) or '.'} {declares}"


def _by_name(who: str, what: str, given: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in given:
        if not isinstance(one, _CLASSES[what]):
            raise UsageError(f"{who}: {_DECLARED[what]}= is a list of sf.{_CLASSES[what].__name__}, got {one!r}")
        if one.name in found:
            raise UsageError(f"{who} declares {what} {one.name} twice")
        found[one.name] = one
    return found
