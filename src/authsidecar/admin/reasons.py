"""What a reason code means and what to do about it, from the page that documents it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_ENTRY: Final = re.compile(r"^### `(\w+)`$", re.MULTILINE)
_LINK: Final = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_ADVICE: Final = "**What to do:**"


@dataclass(frozen=True, slots=True)
class Advice:
    """One reason's entry.

    Attributes:
        meaning: when it is given.
        what_to_do: what an operator can do.
    """

    meaning: str
    what_to_do: str


@cache
def advice() -> Mapping[str, Advice]:
    """Every entry of docs/reference/reason-codes.md, by its code, as plain text."""
    parts = _ENTRY.split(_page().read_text("utf-8"))[1:]
    return {
        code: _advice(entry.partition("\n## ")[0])
        for code, entry in zip(parts[::2], parts[1::2], strict=True)
    }


def _page() -> Path:
    """The page: inside the installed package, else of the checkout around it."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "reason-codes.md"
    checkout = package.parents[1] / "docs" / "reference" / "reason-codes.md"
    return installed if installed.is_file() else checkout


def _advice(entry: str) -> Advice:
    before, _, after = entry.partition(_ADVICE)
    _, _, meaning = before.strip().partition("\n\n")  # the status and the message are known
    return Advice(_plain(meaning), _plain(after.strip().partition("\n\n")[0]))


def _plain(text: str) -> str:
    """Running text without the marks of Markdown; of what is no paragraph, nothing."""
    paragraphs = [one for one in text.split("\n\n") if not one.lstrip().startswith(("|", "```"))]
    return " ".join(_LINK.sub(r"\1", " ".join(paragraphs)).replace("**", "").split())
