"""The Helm chart: the base for Kubernetes with values in it, rendered by helm itself."""

import copy
import json
import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from authsidecar import __version__
from tests.support.kustomize import Document, render

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/authsidecar"
BASE = render(ROOT / "deploy/kubernetes/base")
KUBERNETES = ("1.35.0", "1.36.0", "1.37.0")

pytestmark = [
    pytest.mark.any_python,
    pytest.mark.skipif(which("helm") is None, reason="there is no helm on PATH"),
]


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["helm", *words], capture_output=True, text=True, check=False)


def rendered(*words: str, version: str = KUBERNETES[0]) -> dict[str, Document]:
    """What is rendered, by kind."""
    done = helm("template", "x", str(CHART), "--kube-version", version, *words)
    assert done.returncode == 0, done.stderr
    documents = [one for one in yaml.safe_load_all(done.stdout) if one is not None]
    found = {one["kind"]: one for one in documents}
    assert len(found) == len(documents)
    return found


def as_base(found: dict[str, Document]) -> dict[str, Document]:
    """The same without what helm alone adds."""
    found = copy.deepcopy(found)
    template = found["Deployment"]["spec"]["template"]
    assert len(template["metadata"].pop("annotations")) == 1
    (container,) = template["spec"]["containers"]
    assert container.pop("imagePullPolicy") == "IfNotPresent"
    assert container["image"] == f"authsidecar:{__version__}"
    container["image"] = "authsidecar"
    return found


def test_helm_finds_nothing_to_complain_of() -> None:
    """And the chart is of this version."""
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize("version", KUBERNETES)
def test_without_values_it_is_the_base(version: str) -> None:
    """One source of truth: what is put right there is right here."""
    assert as_base(rendered(version=version)) == {one["kind"]: one for one in BASE}


def test_each_value_has_its_place() -> None:
    """And changes nothing else."""
    sets = {
        "image.tag": "0.9.1",
        "image.pullPolicy": "Always",
        "settings.AUTHSIDECAR_LIMITS__USER": "50",
        "secretName": "other",
        "replicas.min": "3",
        "replicas.max": "9",
        "resources.limits.memory": "1Gi",
        "proxyNamespace": "edge",
        "monitoringNamespace": "watch",
        "podMonitor": "true",
    }
    words = [f"--set{'-string' if '__' in k else ''}={k}={v}" for k, v in sets.items()]
    plain, found = rendered(), rendered(*words)
    assert (
        found["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        != (plain["Deployment"]["spec"]["template"]["metadata"]["annotations"])
    ), "other settings are other pods"
    changed = sorted(differences(plain, found))
    template = "Deployment/spec/template"
    assert changed == sorted(
        {
            "ConfigMap/data/AUTHSIDECAR_LIMITS__USER": "50",
            f"{template}/spec/containers/0/image": "authsidecar:0.9.1",
            f"{template}/spec/containers/0/imagePullPolicy": "Always",
            f"{template}/spec/containers/0/resources/limits/memory": "1Gi",
            f"{template}/spec/volumes/0/secret/secretName": "other",
            f"{template}/metadata/annotations/authsidecar~settings": None,
            "HorizontalPodAutoscaler/spec/minReplicas": 3,
            "HorizontalPodAutoscaler/spec/maxReplicas": 9,
            "NetworkPolicy/spec/ingress/0/from/0/namespaceSelector/matchLabels/"
            "kubernetes.io~metadata.name": "edge",
            "NetworkPolicy/spec/ingress/1/from/0/namespaceSelector/matchLabels/"
            "kubernetes.io~metadata.name": "watch",
            "PodMonitor": None,
        }.items(),
        key=str,
    )
    (monitor,) = render(ROOT / "deploy/kubernetes/podmonitor")
    del monitor["metadata"]["namespace"]
    assert found["PodMonitor"] == monitor


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any]]:
    """Where two documents differ, and what the new one has there, if it is a plain value."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(k, old.get(k), new.get(k)) for k in sorted(old.keys() | new.keys())]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(n), *pair) for n, pair in enumerate(zip(old, new, strict=True))]
    elif old == new:
        return []
    else:
        told = new if not isinstance(new, dict) and "annotations" not in path else None
        return [(path.strip("/"), told)]
    return [
        one
        for key, before, after in pairs
        for one in differences(before, after, f"{path}/{key.replace('/', '~')}")
    ]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("replica.min=3", "'replica' not allowed"),
        ("replicas.min=9", "replicas.min is more than replicas.max"),
        ("settings.AUTHSIDECAR_LIMITS__USER=9", "got number, want string"),
        ("settings.LIMIT=x", "invalid propertyName 'LIMIT'"),
        ("image.repository=", "image/repository"),
        ("proxyNamespace=A b", "proxyNamespace"),
    ],
)
def test_a_value_that_is_wrong_is_named(given: str, why: str) -> None:
    """Before anything reaches the cluster."""
    words = ("--kube-version", KUBERNETES[0], "--set", given)
    done = helm("template", "x", str(CHART), *words)
    assert done.returncode != 0
    assert why in done.stderr


def test_the_schema_knows_every_value() -> None:
    """And is one itself."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    Draft7Validator.check_schema(schema)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) == {*values, "global"}
    Draft7Validator(schema).validate(values)
