"""As much of kustomize as deploy/kubernetes uses, for machines without it.

Resources (files and directories), a namespace for all of them, and patches: strategic merges, and
`replace` of JSON patch. What is unknown here is an error, so that no overlay outgrows it unseen.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

KNOWN = {"apiVersion", "kind", "namespace", "resources", "patches"}
MERGE_KEYS = {
    "containers": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
"""By which field the items of a list are the same; other lists are replaced."""


def render(directory: Path) -> list[Document]:
    """The documents of a kustomization."""
    (found,) = _documents(directory / "kustomization.yaml")
    assert not set(found) - KNOWN, set(found) - KNOWN
    made = [one for name in found["resources"] for one in _resource(directory / name)]
    for patch in found.get("patches", ()):
        assert not set(patch) - {"path", "target"}, patch
        (content,) = _documents(directory / patch["path"])
        if isinstance(content, list):
            _replace(_one(made, patch["target"]["kind"], patch["target"]["name"]), content)
        else:
            target = _one(made, content["kind"], content["metadata"]["name"])
            target |= _merged(target, content)
    if namespace := found.get("namespace"):
        for one in made:
            one["metadata"]["namespace"] = namespace
    return made


def _resource(path: Path) -> list[Document]:
    return render(path) if path.is_dir() else list(_documents(path))


def _documents(path: Path) -> Iterator[Any]:
    return yaml.safe_load_all(path.read_text(encoding="utf-8"))


def _one(documents: list[Document], kind: str, name: str) -> Document:
    (found,) = (one for one in documents if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def _merged(old: Any, new: Any, name: str = "") -> Any:
    """A strategic merge: maps are merged, lists by their key, where they have one."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: _merged(old.get(key), value, key) for key, value in new.items()}
    if isinstance(old, list) and isinstance(new, list) and (key := MERGE_KEYS.get(name)):
        kept = {one[key]: one for one in old}
        for one in new:
            kept[one[key]] = _merged(kept.get(one[key]), one)
        return list(kept.values())
    return copy.deepcopy(new)


def _replace(document: Any, operations: list[Document]) -> None:
    for operation in operations:
        assert operation["op"] == "replace", operation
        *path, last = operation["path"].lstrip("/").split("/")
        place = document
        for step in path:
            place = place[int(step) if isinstance(place, list) else step]
        place[int(last) if isinstance(place, list) else last] = operation["value"]
