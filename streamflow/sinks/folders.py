"""Where files go that are whole or not there: a directory of this machine, or storage that has a URL.

Owns: how a file gets its name. Must not: know what is in it. Called by: `parquet.py`.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from streamflow.errors import UsageError
from streamflow.sinks.sink import TargetError, required


class Directory:
    """On this machine. A file is on the disk before it has its name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.shown = str(root)

    def open(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(f"can't make the directory {self._root}: {error.strerror}") from error

    def names(self, folder: str, prefix: str) -> list[str]:
        return [path.name for path in (self._root / folder).glob(f"{prefix}*")]

    def put(self, folder: str, name: str, data: bytes) -> None:
        directory = self._root / folder
        directory.mkdir(exist_ok=True)
        temporary = directory / f".{uuid.uuid4().hex}"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(directory / name)
        finally:
            temporary.unlink(missing_ok=True)
        for one in (directory, self._root):
            descriptor = os.open(one, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def remove(self, folder: str, name: str) -> None:
        (self._root / folder / name).unlink(missing_ok=True)


class Storage:
    """A URL of fsspec: an object is there when all of it is."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.shown = url.partition("://")[0] + "://…"
        self._files: Any = None
        self._root = ""

    def open(self) -> None:
        fsspec = required("fsspec", "parquet")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self._url)
        except (ValueError, ImportError) as error:  # another protocol, or what it needs isn't installed
            raise UsageError(f"fsspec can't open {self.shown}: {error}") from None

    def names(self, folder: str, prefix: str) -> list[str]:
        found: list[str] = self._files.glob(f"{self._root}/{folder}/{prefix}*")
        return [name.rpartition("/")[2] for name in found]

    def put(self, folder: str, name: str, data: bytes) -> None:
        self._files.makedirs(f"{self._root}/{folder}", exist_ok=True)
        self._files.pipe_file(f"{self._root}/{folder}/{name}", data)

    def remove(self, folder: str, name: str) -> None:
        self._files.rm_file(f"{self._root}/{folder}/{name}")
