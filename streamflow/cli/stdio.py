"""The three standard descriptors of a command, whatever it inherits: closed, of another encoding, or full.

Owns: that 0, 1 and 2 are never anything else (a socket that gets one of them aborts uvloop, or receives the log), that
what an encoding doesn't have is printed as an escape, and what happens when the output can't be written.
Must not: import anything that takes time. Called by: `main`, first.

The escape is `\\u00e9`, in JSON one more spelling of the same text: so the output for programs stays what it is.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from typing import TextIO, cast

ESCAPE = "streamflow_escape"
ASCII = "streamflow_ascii"

_NOT_WRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.ENXIO})


def take_descriptors() -> None:
    """Open closed descriptors on the null device, and make both outputs escape what they can't print.

    `sys.stdin` stays None where it was closed: reading it is an error. What is printed to a closed output is dropped.
    """
    codecs.register_error(ESCAPE, _escaped)
    codecs.register(_find_ascii)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    sys.stdout = _escaping(cast("TextIO | None", sys.stdout), 1)
    sys.stderr = _escaping(cast("TextIO | None", sys.stderr), 2)


def write_failed(error: OSError) -> str | None:
    """What to say of an error of the output: empty when nobody reads it any more; None when it is another error.

    Python would try again at its exit: nothing that is still to be written gets anywhere.
    """
    if isinstance(error, BrokenPipeError):
        message = ""
    elif error.errno in _NOT_WRITTEN and cast("object", error.filename) is None:
        message = f"could not write the output: {error.strerror}"
    else:
        return None
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
    return message


def _escaping(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:
        return open(number, "w", encoding="utf-8", errors=ESCAPE, closefd=False)
    encoding = codecs.lookup(stream.encoding).name
    # click writes UTF-8 to what says that it is ASCII.
    cast("codecs.StreamReaderWriter", stream).reconfigure(
        encoding=ASCII if encoding == "ascii" else None, errors=ESCAPE
    )
    return stream


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    pairs = text.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{pairs[at : at + 2].hex()}" for at in range(0, len(pairs), 2)), error.end


def _find_ascii(name: str) -> codecs.CodecInfo | None:
    if name != ASCII:
        return None
    same = codecs.lookup("ascii")
    return codecs.CodecInfo(
        same.encode, same.decode, same.streamreader, same.streamwriter, same.incrementalencoder,
        same.incrementaldecoder, name=ASCII,
    )  # fmt: skip
