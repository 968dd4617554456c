"""Documents as scripts: the shell blocks of a page, run as a reader would type them."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from tests.support.redis import guarded

ROOT = Path(__file__).parents[2]

STAND_INS = Path(__file__).with_name("stand_ins.sh")

PATIENCE_S = 90

# Whatever a page leaves running in its shell ends with it.
FRAME = """
set -euo pipefail
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
source {stand_ins}
{script}
"""


@dataclass(frozen=True, slots=True)
class Document:
    """One page of the documentation."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def text(self) -> str:
        return self.path.read_text("utf-8")

    def blocks(self, language: str) -> list[str]:
        """The fenced blocks in that language, those in lists too."""
        return [dedent(body) for _, found, body in self._fenced() if found == language]

    def languages(self) -> set[str]:
        """The language of every fenced block; empty for a block without one."""
        return {language for _, language, _ in self._fenced()}

    def shown(self) -> list[str]:
        """The lines of output that the page shows, but for those that it leaves out."""
        lines = "\n".join(self.blocks("text")).splitlines()
        return [line for line in lines if line not in {"", "..."}]

    def mentions(self) -> list[str]:
        """Commands of ours within the text."""
        text = re.sub(r"^( *)```.*?^\1```$", "", self.text, flags=re.DOTALL | re.MULTILINE)
        return [" ".join(span.split()) for span in re.findall(r"`(authsidecar\s[^`]+)`", text)]

    def _fenced(self) -> list[tuple[str, str, str]]:
        return re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", self.text, re.DOTALL | re.MULTILINE)


def documents() -> list[Document]:
    """README and every how-to."""
    return [Document(path) for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/how-to/*.md")))]


def replaced(script: str, literals: Mapping[str, str]) -> str:
    """The script with placeholders replaced, in this order; each must be there."""
    for literal, value in literals.items():
        assert literal in script, f"the page does not say {literal!r} (any more)"
        script = script.replace(literal, value)
    return script


def tools(directory: Path, **programs: Path) -> str:
    """A PATH with the system's programs, authsidecar and these, and nothing else of ours."""
    directory.mkdir()
    for name, program in {
        "authsidecar": Path(sys.executable).parent / "authsidecar",
        **programs,
    }.items():
        (directory / name).symlink_to(program)
    return f"{directory}:/usr/bin:/bin"


async def type_in(script: str, directory: Path, environ: Mapping[str, str]) -> str:
    """Run it in one shell; what it said.

    Raises:
        AssertionError: a command fails, is not there, or a stand-in refuses its arguments.
    """
    refused = directory.with_name("refused")
    process = await asyncio.create_subprocess_exec(
        *guarded("/bin/bash", "-c", FRAME.format(stand_ins=STAND_INS, script=script)),
        cwd=directory,
        env={"LC_ALL": "C.UTF-8", "ROOT": str(ROOT), "REFUSED": str(refused), **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()
    said = out.decode()
    assert not refused.exists(), refused.read_text() + said
    assert process.returncode == 0, said
    return said
