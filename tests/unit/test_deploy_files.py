"""compose.yaml, the Kubernetes manifests, the systemd units: each fits its schema, and what they say fits together.

The checkers are those of the extra `dev`, and systemd's and Kubernetes' own where they are installed. Whether
the image and compose.yaml run is seen in tests/process/test_containers.py.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamflow.http.catalog import METRICS
from streamflow.settings import Settings
from streamflow.version import __version__

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
MANIFESTS = [file for file in sorted(KUBERNETES.glob("*.yaml")) if file.name != "kustomization.yaml"]
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
OLDEST_KUBERNETES = "1.27"
"""The first with all of the fields."""
AFTER_GRACE = 5.0
"""Seconds that docs/operations.md asks for on top of the grace."""


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} isn't installed: it is in the extra `dev`")


def documents(file: Path) -> list[dict[str, Any]]:
    import yaml

    return list(yaml.safe_load_all(file.read_text()))


def pods() -> Iterator[dict[str, Any]]:
    for file in MANIFESTS:
        for document in documents(file):
            if document["kind"] == "Deployment":
                yield document["spec"]["template"]["spec"]


def settings_of(names: set[str]) -> set[str]:
    return {name.removeprefix("STREAMFLOW_").lower() for name in names}


KNOWN = {"app", "log_format", "log_level", "worker_concurrency", *(f.name for f in msgspec.structs.fields(Settings))}


# --- compose ----------------------------------------------------------------------------------------------------------


@needs("check_jsonschema")
def test_compose_fits_the_schema_of_its_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs("yaml")
def test_compose_names_the_version_real_settings_and_time_to_drain() -> None:
    (compose,) = documents(ROOT / "compose.yaml")
    served = [compose["services"][name] for name in ("daemon", "worker")]
    for service in served:
        assert service["image"] == f"streamflow:{__version__}"
        assert settings_of(service["environment"].keys()) <= KNOWN
        grace = float(service["environment"]["STREAMFLOW_GRACE"])
        assert float(service["stop_grace_period"].removesuffix("s")) > grace + AFTER_GRACE


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@needs("kubernetes_validate")
@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, "newest"])
@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_a_manifest_fits_the_schema_of_kubernetes(file: Path, version: str) -> None:
    import kubernetes_validate  # pyright: ignore[reportMissingTypeStubs]

    if version == "newest":
        version = kubernetes_validate.latest_version()
    for document in documents(file):
        kubernetes_validate.validate(document, version, strict=True)


@needs("yaml")
def test_kustomize_knows_every_manifest_except_the_secret() -> None:
    """The secret is made by hand: an `apply` must not replace it by the example."""
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    assert set(kustomization["resources"]) == {file.name for file in MANIFESTS} - {"secret.example.yaml"}
    assert [image["newTag"] for image in kustomization["images"]] == [__version__]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl isn't installed")
@pytest.mark.parametrize("scaled", [False, True])
def test_kustomize_builds_what_is_applied(scaled: bool, tmp_path: Path) -> None:
    folder = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    if scaled:
        file = folder / "kustomization.yaml"
        file.write_text(file.read_text().replace("# components:\n#   -", "components:\n  -"))
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"image: streamflow:{__version__}") == 2
    assert "namespace:" not in done.stdout
    assert len(re.findall(r"^  replicas:", done.stdout, re.MULTILINE)) == (1 if scaled else 2)
    assert ("kind: ScaledObject" in done.stdout) == scaled


@needs("yaml")
def test_pods_get_real_settings_and_time_to_drain() -> None:
    (settings,) = documents(KUBERNETES / "settings.yaml")
    (secret,) = documents(KUBERNETES / "secret.example.yaml")
    assert settings_of({*settings["data"], *secret["stringData"]}) <= KNOWN
    found = list(pods())
    assert len(found) == 2
    for pod in found:
        assert pod["terminationGracePeriodSeconds"] > float(settings["data"]["STREAMFLOW_GRACE"]) + AFTER_GRACE
        (container,) = pod["containers"]
        sources = [next(iter(source.values()))["name"] for source in container["envFrom"]]
        assert sources == [settings["metadata"]["name"], secret["metadata"]["name"]]


@needs("yaml")
def test_pods_are_restricted_as_the_pod_security_standard_wants() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 10001, "the image's user"
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["enableServiceLinks"], "a service's name may begin with streamflow"
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
        assert container["livenessProbe"]["httpGet"]["path"] == "/health", "not /ready: the server may be away"


@needs("yaml")
def test_each_deployment_is_selected_by_its_disruption_budget() -> None:
    for file in (KUBERNETES / "daemons.yaml", KUBERNETES / "workers.yaml"):
        deployment, budget = documents(file)
        assert deployment["spec"]["selector"] == budget["spec"]["selector"]
        labels = deployment["spec"]["selector"]["matchLabels"]
        assert deployment["spec"]["template"]["metadata"]["labels"] == labels
        for constraint in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert constraint["labelSelector"]["matchLabels"] == labels


@needs("yaml")
def test_the_scaled_deployment_and_its_queue_are_those_of_the_manifests() -> None:
    (scaled,) = documents(KUBERNETES / "keda/workers.yaml")
    deployment, _ = documents(KUBERNETES / "workers.yaml")
    (settings,) = documents(KUBERNETES / "settings.yaml")
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (trigger,) = scaled["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    assert set(re.findall(r"streamflow_\w+", query)) <= {metric.name for metric in METRICS}
    assert set(re.findall(r'queue="([^"]*)"', query)) == {arguments[arguments.index("--queue") + 1]}
    assert set(re.findall(r'sf_namespace="([^"]*)"', query)) == {settings["data"]["STREAMFLOW_NAMESPACE"]}
    assert trigger["metadata"]["threshold"] == arguments[arguments.index("--concurrency") + 1]


# --- systemd ----------------------------------------------------------------------------------------------------------


@functools.cache
def systemd_version() -> int:
    if shutil.which("systemd-analyze") is None:
        return 0
    told = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, timeout=50, check=True)
    return int(told.stdout.split()[1])


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A root directory that has the units and a command for them."""
    if systemd_version() < 250:
        pytest.skip("systemd-analyze isn't installed, or is older than 250")
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(unit, folder)
    command = tmp_path / "usr/local/bin/streamflow"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    return tmp_path


def analyse(*words: str, root: Path) -> str:
    command = ["systemd-analyze", *words, f"--root={root}", "--no-pager"]
    done = subprocess.run(
        [*command, "streamflow-daemon@1.service", "streamflow-worker@embed.service"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_understands_every_line_of_the_units(units: Path) -> None:
    assert analyse("verify", "--recursive-errors=no", root=units) == ""


def test_systemd_finds_the_units_little_exposed(units: Path) -> None:
    """0 is a service that can do nothing, 10 one without restrictions. Above 2.0 this command fails."""
    assert "Overall exposure level" in analyse("security", "--offline=yes", "--threshold=20", root=units)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_leaves_time_to_drain_and_is_not_restarted_in_vain(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    (stop,) = (line.partition("=")[2] for line in lines if line.startswith("TimeoutStopSec="))
    assert float(stop) > Settings().grace + AFTER_GRACE
    assert {"Restart=on-failure", "RestartPreventExitStatus=2", "KillMode=mixed"} <= set(lines)
