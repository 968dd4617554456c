"""The diagrams of the pages are ones that Mermaid itself can draw."""

import re
from pathlib import Path

import pytest
from mermaid_parser import MermaidParser

ROOT = Path(__file__).parents[2]
DIAGRAMS = [
    pytest.param(text, id=f"{page.stem}-{number}")
    for page in sorted(ROOT.glob("docs/**/*.md"))
    for number, text in enumerate(re.findall(r"```mermaid\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("diagram", DIAGRAMS)
def test_mermaid_parses_each_diagram(diagram: str) -> None:
    """What Mermaid's own parser takes has a type that it knows."""
    assert MermaidParser().parse(diagram)["graph_type"]


def test_a_broken_diagram_is_noticed() -> None:
    """A bracket that is not closed is an error."""
    with pytest.raises(Exception, match="Parse error"):
        MermaidParser().parse("flowchart LR\n a[x --> b{y}\n")
