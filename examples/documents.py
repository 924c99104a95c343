"""A document pipeline: folders of files come in, workers in other processes read them, ended runs go into an archive.

A file named `ready` says that its folder is whole; that starts a run. It goes through the folder in a window: so many
children at a time, and in each so many files. So 10,000 files are no more work for the server at once than 100 are.

    python examples/documents.py                      a worker and a trigger as processes of their own, a few files
    python examples/documents.py 10000                and with more; or by commands alone:
    export STREAMFLOW_ARCHIVE=file:///tmp/archive     where ended runs go, after a week or when they are purged
    streamflow dev --app examples/documents.py        a server, a daemon and the status screen
    streamflow worker --app examples/documents.py --queue read
    INCOMING=/tmp/in streamflow trigger run --app examples/documents.py
    streamflow purge --workflow shelf                 moves those into the archive; `streamflow runs --archived`

The trigger needs `pip install 'streamflowd[triggers]'`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import Process
from pathlib import Path

import streamflow as sf
from streamflow import triggers

app = sf.App()
SHELF = 100
"""Files of one child: its history stays short."""


# --- steps ------------------------------------------------------------------------------------------------------------


@app.step
def list_files(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).glob("*.txt"))


@app.step(queue="read", timeout=60, retry=sf.Retry(attempts=5))
def count_words(path: str) -> int:
    """Runs only where a worker serves the queue. If that dies, the file goes back to the queue."""
    return len(Path(path).read_text().split())


# --- workflows --------------------------------------------------------------------------------------------------------


@app.workflow
async def shelf(folder: str, files: list[str]) -> int:
    return sum(await sf.map(count_words, [f"{folder}/{file}" for file in files], concurrency=20))


@app.workflow
async def index(folder: str) -> str:
    files = await list_files(folder)
    shelves = [files[first : first + SHELF] for first in range(0, len(files), SHELF)]
    words = sum(await sf.map(lambda files: shelf(folder, files), shelves, concurrency=4))
    return f"{words} words in {len(files)} files"


@app.trigger(triggers.files(os.environ.get("INCOMING", "incoming"), "*/ready", settle=0.5))
def came(delivery: triggers.Delivery[triggers.File]) -> triggers.Action:
    """The id is the folder's name: any number of processes may watch, and one run is started."""
    folder = Path(delivery.payload.path).parent
    return triggers.start(index, str(folder), id=folder.name)


# --- the same as a script ---------------------------------------------------------------------------------------------


def drop(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.txt").write_text("an old silent pond")
    (folder / "ready").touch()


async def command(server: str, incoming: Path, *words: str) -> Process:
    environ = {**os.environ, "INCOMING": str(incoming), "STREAMFLOW_REDIS": server}
    command = [sys.executable, "-m", "streamflow", *words, "--app", __file__, "--log-level", "warning"]
    return await asyncio.create_subprocess_exec(*command, env=environ)


async def result_of(run: sf.Run[str]) -> str:
    """Of a run that somebody else starts."""
    while True:
        try:
            return await run.result(timeout=600)
        except sf.RunNotFound:
            await asyncio.sleep(0.1)


async def main(count: int = 250) -> None:
    with tempfile.TemporaryDirectory() as name:
        data, incoming = Path(name, "data"), Path(name, "incoming")
        drop(incoming / "monday", count)
        server = f"unix://{data}/server.sock"
        async with sf.local(app, directory=data, archive=f"file://{name}/archive") as client:
            worker = await command(server, incoming, "worker", "--queue", "read")
            watcher = await command(server, incoming, "trigger", "run")
            run = client.run("monday", index)
            print(await result_of(run))

            for ended in await client.runs(workflow="shelf", limit=1000):
                await client.purge(ended.id)
            await client.purge("monday")
            archived = await client.archived_runs(limit=1000)
            print(f"{len(await client.runs())} runs are on the server, {len(archived)} in the archive")
            print("from the archive:", await run.result())
            for process in (worker, watcher):
                process.terminate()
                await process.wait()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:2])))
