"""Exceptions whose own code raises when anything is asked of them. Made in functions: pytest asks what modules have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


def refuse(*_: Any) -> NoReturn:
    raise SystemExit("asked")


def reads() -> BaseException:
    class Hostile(Exception):
        def __getattribute__(self, name: str) -> NoReturn:
            refuse()

    return Hostile()


def has_a_class() -> BaseException:
    class Hostile(Exception):
        __class__ = property(refuse)  # type: ignore[assignment]

    return Hostile()


def shows() -> BaseException:
    class Hostile(BaseException):
        with_traceback = __str__ = __repr__ = refuse  # type: ignore[assignment]

    return Hostile()


def has_a_metaclass() -> BaseException:
    class Meta(type):
        __instancecheck__ = __repr__ = __hash__ = refuse  # type: ignore[assignment]

        def __getattribute__(cls, name: str) -> NoReturn:
            refuse()

    class Hostile(RuntimeError, metaclass=Meta):
        pass

    return Hostile()


def has_a_module() -> BaseException:
    class Hostile(RuntimeError):
        __module__ = 3  # type: ignore[assignment]

    return Hostile()


HOSTILE: dict[str, Callable[[], BaseException]] = {
    make.__name__: make for make in (reads, has_a_class, shows, has_a_metaclass, has_a_module)
}
