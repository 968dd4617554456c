"""The schemas of custom resources, kept in tests/data/crd, and what they have against a document.

`python -m tests.support.custom_resources MODULES` writes them anew from the Go modules of SOURCES,
unpacked in the directory MODULES, as `go mod download` leaves them.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import jsonschema
import yaml

KEPT: Final = Path(__file__).parents[1] / "data/crd"


class Source(NamedTuple):
    """Where the definition of a kind is.

    Attributes:
        module: the Go module and its version.
        path: the file in it.
        kinds: which of its kinds are used here.
    """

    module: str
    path: str
    kinds: tuple[str, ...]


GATEWAY_API: Final = "sigs.k8s.io/gateway-api@v1.6.1"
ENVOY_GATEWAY: Final = "github.com/envoyproxy/gateway@v1.9.1"
SOURCES: Final = (
    Source(
        "github.com/traefik/traefik/v3@v3.7.13",
        "docs/content/reference/dynamic-configuration/kubernetes-crd-definition-v1.yml",
        ("IngressRoute", "Middleware"),
    ),
    Source(
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        ("PodMonitor",),
    ),
    *(
        Source(GATEWAY_API, f"config/crd/standard/gateway.networking.k8s.io_{name}.yaml", (kind,))
        for name, kind in (("gateways", "Gateway"), ("httproutes", "HTTPRoute"))
    ),
    *(
        Source(
            ENVOY_GATEWAY,
            f"charts/gateway-helm/charts/crds/crds/generated/gateway.envoyproxy.io_{name}.yaml",
            (kind,),
        )
        for name, kind in (
            ("clienttrafficpolicies", "ClientTrafficPolicy"),
            ("securitypolicies", "SecurityPolicy"),
        )
    ),
)
"""Envoy Gateway's own release asks for this one of the Gateway API."""

CHECKED: Final = {
    "additionalProperties",
    "allOf",
    "anyOf",
    "enum",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "not",
    "oneOf",
    "pattern",
    "properties",
    "required",
    "type",
}
"""What JSON Schema checks; the rest of a definition is prose, defaults and rules in CEL."""

METADATA: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        **{
            name: {"type": "object", "additionalProperties": {"type": "string"}}
            for name in ("labels", "annotations")
        },
    },
    "required": ["name"],
    "additionalProperties": False,
}
"""Of what is Kubernetes' own, and in no definition: what is written by hand."""


def objections(document: dict[str, Any]) -> list[str]:
    """What the schema of a document's kind has against it, each with its place."""
    kept = json.loads((KEPT / f"{document['kind']}.json").read_text())
    assert kept["apiVersion"] == document["apiVersion"], kept["apiVersion"]
    validator = jsonschema.Draft202012Validator(kept["schema"])
    return [f"{one.json_path}: {one.message}" for one in validator.iter_errors(document)]


def strict(schema: dict[str, Any], *, closed: bool = True) -> dict[str, Any]:
    """What is checked of a schema, with every field that it does not name refused.

    Args:
        schema: as the definition has it.
        closed: not within `allOf` and its like, which name some fields of many.
    """
    made = {key: value for key, value in schema.items() if key in CHECKED}
    if "properties" in made:
        made["properties"] = {
            name: strict(one, closed=closed) for name, one in made["properties"].items()
        }
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = strict(made[key], closed=closed)
    for key in ("allOf", "anyOf", "oneOf"):
        if key in made:
            made[key] = [strict(one, closed=False) for one in made[key]]
    if "not" in made:
        made["not"] = strict(made["not"], closed=False)
    if closed and "properties" in made and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def main(modules: Path) -> None:
    """Write the schemas anew."""
    for source in SOURCES:
        text = (modules / source.module / source.path).read_text()
        for definition in yaml.safe_load_all(text):
            spec = definition["spec"]
            kind = spec["names"]["kind"]
            if kind not in source.kinds:
                continue
            version = next(one for one in spec["versions"] if one["storage"])
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = METADATA
            kept = {
                "source": f"{source.module}/{source.path}",
                "apiVersion": f"{spec['group']}/{version['name']}",
                "schema": schema,
            }
            (KEPT / f"{kind}.json").write_text(json.dumps(kept, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
