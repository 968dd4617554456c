"""What is said about installing works today, and installs nobody else's package."""

import re
import tomllib
from pathlib import Path

from authsidecar import extras

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for name in ("src", "docs", "deploy", "README.md", "config.example.yaml", "Dockerfile")
    for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
    if path.is_file() and path.suffix in {".py", ".md", ".yaml", ".yml", ".sh", "", ".example"}
)


def test_no_line_names_the_package_to_an_installer() -> None:
    """It is in no registry: anyone could take the name, and our advice would install theirs."""
    named = re.compile(r"\b(?:pip|pipx|uv|uvx)\b[^\n]*[\s'\"]authsidecar(?:\[|['\"]|==|$)")
    assert len(PAGES) > 100
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in PAGES
        for line in path.read_text().splitlines()
        if named.search(line)
    ]
    assert found == []
    assert named.search("pip install 'authsidecar[mail]'")
    assert named.search("pipx install authsidecar")


def test_every_message_takes_the_words_from_one_place() -> None:
    """So that a release changes one line."""
    sources = (ROOT / "src").rglob("*.py")
    assert [p.name for p in sources if "pip install" in p.read_text()] == ["extras.py"]


def test_every_extra_that_is_named_is_there() -> None:
    """A message that names an extra is of no use without it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        extra
        for path in (ROOT / "src").rglob("*.py")
        for extra in re.findall(r"extras\.command\(['\"]([a-z]+)['\"]\)", path.read_text())
    }
    assert named == {"coolify", "demo", "embedded", "mail", "otel"}
    assert named <= set(project["optional-dependencies"])
    for extra in named:
        assert f"'.[{extra}]'" in extras.command(extra)
