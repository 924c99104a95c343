"""A container engine for tests: Debian's podman as root, in namespaces of its own.

Owns: its configuration, the stand-in for base images, and that nothing is left behind. Must not: know what is tested.
Called by: tests/process/test_containers.py.

Whatever a test leaves (processes, mounts, bridges, firewall rules) goes with the namespaces. Nothing is pulled from a
registry of images: the base is made from Debian's packages.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STAND_IN = "localhost/stand-in"
TOOLS = ("podman", "runc", "mmdebstrap", "unshare", "nsenter", "ip", "iptables")
"""Debian's packages of the same names (`ip`: iproute2); podman also needs netavark, aardvark-dns and catatonit."""
HELPERS = ("netavark", "aardvark-dns", "catatonit")
HELPER_FOLDERS = (Path("/usr/lib/podman"), Path("/usr/libexec/podman"), Path("/usr/bin"))
PACKAGES = (
    *(
        "base-files",
        "base-passwd",
        "bash",
        "coreutils",
        "dash",
        "findutils",
        "grep",
        "libc-bin",
        "login",
        "passwd",
        "sed",
    ),
    *("python3", "python3-venv"),
)
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
UNPACKED = "localhost/unpacked"
STAND_IN_FILE = f"""FROM {UNPACKED}
COPY added /
RUN cd /usr/share/base-passwd && cp passwd.master /etc/passwd && cp group.master /etc/group
"""

HOLD = """set -e
# Images and containers are in memory: nothing of them is synced to a disk, or left. What an engine leaves in /run it
# would find there the next time, such as the addresses of containers by name. /etc/resolv.conf may be a link into it.
mount -t tmpfs tmpfs "$0"
names=$(readlink -f /etc/resolv.conf)
cp "$names" "$0/resolv.conf"
mount -t tmpfs tmpfs /run
case $names in /run/*) mkdir -p "${names%/*}" && cp "$0/resolv.conf" "$names" ;; esac
echo ready
# As process 1 it also reaps what loses its parent.
while read -r _; do :; done
"""
CONTAINERS_CONF = """
[containers]
# Limits that need no right to raise them: inside a sandbox even root may not have it.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
tmp_dir = "{folder}/memory/tmp"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/memory/networks"
"""
STORAGE_CONF = """
[storage]
driver = "overlay"
graphroot = "{folder}/memory/storage"
runroot = "{folder}/memory/run"
"""


class EngineUnavailable(Exception):
    """Why containers can't be built or run here, in a sentence."""


class Engine:
    """Use it as a context; `podman` and `compose` run commands in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._holder: subprocess.Popen[bytes] | None = None
        self._inside: list[str] = []
        self._environ = {
            **os.environ,
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "BUILDAH_ISOLATION": "chroot",
            "TMPDIR": str(folder / "memory"),
        }

    def __enter__(self) -> Engine:
        if os.geteuid() != 0:
            raise EngineUnavailable("only root can make the namespaces")
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        missing += [name for name in HELPERS if not any((folder / name).exists() for folder in HELPER_FOLDERS)]
        if find_spec("podman_compose") is None:
            missing.append("podman-compose (a package of Python)")
        if missing:
            raise EngineUnavailable(f"not installed: {', '.join(missing)}")
        (self._folder / "containers.conf").write_text(CONTAINERS_CONF.format(folder=self._folder))
        (self._folder / "storage.conf").write_text(STORAGE_CONF.format(folder=self._folder))
        self._hold_namespaces()
        try:
            self._make_stand_in()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._holder is not None
        self._holder.communicate()  # process 1 ends at the end of its input, and all others of its namespace with it
        for parent in Path("/sys/fs/cgroup").glob("*/libpod_parent"):
            for walked in os.walk(parent, topdown=False):
                with contextlib.suppress(OSError):  # another engine's
                    Path(walked[0]).rmdir()
        shutil.rmtree(self._folder, ignore_errors=True)

    def podman(self, *words: str, **options: Any) -> str:
        return self._run("podman", *words, **options).stdout

    def compose(self, *words: str, **options: Any) -> str:
        return self._run(sys.executable, "-m", "podman_compose", *words, **options).stdout

    def build(self, *words: str, **options: Any) -> str:
        """Podman on the host's network, where the package registries are."""
        return self._run("podman", "build", "--network=host", "--format=docker", *words, host=True, **options).stdout

    def compose_build(self, *words: str, **options: Any) -> str:
        arguments = "--podman-build-args=--network=host --format=docker --layers=false"
        return self._run(
            sys.executable, "-m", "podman_compose", arguments, "build", *words, host=True, **options
        ).stdout

    def logs(self, name: str) -> str:
        done = self._run("podman", "logs", name)
        return done.stdout + done.stderr

    def keep_bridges_addresses(self) -> None:
        """A bridge has the lowest hardware address of what is attached, so it changes as containers leave. The others
        then don't find it for up to half a minute, nor with it each other's names, unless the address was set."""
        for line in self._run("ip", "-oneline", "link", "show", "type", "bridge").stdout.splitlines():
            words = line.split()
            address = words[words.index("link/ether") + 1]
            self._run("ip", "link", "set", "dev", words[1].rstrip(":"), "address", address)

    def exit_code(self, *words: str) -> int:
        return self._run("podman", *words, check=False).returncode

    def command(self, *words: str) -> list[str]:
        """For tests that start a command of the engine themselves, with `environ`."""
        return [*self._inside, "--net", "--", *words]

    @property
    def environ(self) -> dict[str, str]:
        return self._environ

    def _run(
        self, *words: str, host: bool = False, check: bool = True, timeout: float = 120.0, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        command = [*self._inside, "--", *words] if host else self.command(*words)
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**self._environ, **environ},
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def _hold_namespaces(self) -> None:
        words = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        memory = self._folder / "memory"
        memory.mkdir()
        pipe = subprocess.PIPE
        self._holder = subprocess.Popen(
            ["unshare", *words, "bash", "-c", HOLD, str(memory)], stdin=pipe, stdout=pipe, stderr=pipe
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            _, error = self._holder.communicate()
            raise EngineUnavailable(f"namespaces can't be made: {error.decode(errors='replace').strip()}")
        pid = self._holder.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._inside = ["nsenter", "--target", child, "--mount", "--pid", f"--wd={ROOT}"]

    def _make_stand_in(self) -> None:
        """Python and a shell, unpacked without running the packages' scripts: seconds instead of a minute."""
        release = platform.freedesktop_os_release()
        if release.get("ID") != "debian":
            raise EngineUnavailable("the stand-in for the base image is made from Debian's packages, on Debian only")
        made = self._run(
            *("mmdebstrap", "--mode=root", "--variant=extract", f"--include={','.join(PACKAGES)}", "--quiet"),
            *(release["VERSION_CODENAME"], str(self._folder / "memory/stand-in.tar")),
            host=True,
            check=False,
        )
        if made.returncode != 0:
            raise EngineUnavailable(f"Debian's packages can't be had: {made.stderr.strip().splitlines()[-1:]}")
        # A machine may reach its registries only with certificates of its own.
        added = self._folder / "added"
        (added / "etc").mkdir(parents=True)
        if CERTIFICATES.exists():
            (added / CERTIFICATES.parent.relative_to("/")).mkdir(parents=True)
            shutil.copyfile(CERTIFICATES, added / CERTIFICATES.relative_to("/"))
            (added / "etc/pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
        (self._folder / "Containerfile").write_text(STAND_IN_FILE)
        self.podman("import", "--quiet", str(self._folder / "memory/stand-in.tar"), UNPACKED)
        self.build(
            "--tag", STAND_IN, "--layers=false", "--file", str(self._folder / "Containerfile"), str(self._folder)
        )
        tried = self._run("podman", "run", "--rm", STAND_IN, "python3", "-c", "", check=False)
        if tried.returncode != 0:
            raise EngineUnavailable(f"podman can't run a container here: {tried.stderr.strip()}")


def until(condition: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    """Wait for a condition inside containers. Each look costs a process or two, on a machine that may be busy."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
