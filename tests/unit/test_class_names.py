"""A class of the package has a name of its own, so that a reader knows which one is meant."""

import ast
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import authsidecar


def public_classes(root: Path) -> Mapping[str, frozenset[str]]:
    """The files of each public class's name."""
    found = defaultdict(set)
    for path in root.rglob("*.py"):
        if path.parent == root / "serving/manage" and path.stem.endswith("models"):
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].add(path.relative_to(root).as_posix())
    return {name: frozenset(files) for name, files in found.items()}


def test_no_public_class_has_the_name_of_another() -> None:
    """But for the management API's models, which are called what the API calls them."""
    found = public_classes(Path(authsidecar.__file__).parent)
    assert len(found) > 100
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_a_second_class_of_a_name_is_found(tmp_path: Path) -> None:
    """Wherever it is; a private one is nobody's business."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("class One: ...\nclass _Two: ...\n")
    (tmp_path / "y.py").write_text("class One: ...\nclass _Two: ...\n")
    assert public_classes(tmp_path) == {"One": frozenset({"a/x.py", "y.py"})}
