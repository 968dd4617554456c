"""Where servers write their lines: a pipe that is read at once, as a container's runtime does."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.redis import guarded

FIRST_LINES = "sed -u 20q; exec cat > /dev/null"
"""Keeps what a start that fails says, and throws the rest away."""


@contextmanager
def read_pipe(file: Path) -> Iterator[int]:
    """The end to write to of a pipe that is read until the context ends.

    Args:
        file: where the first lines are kept.
    """
    with file.open("wb") as first:
        command = guarded("/bin/sh", "-c", FIRST_LINES)
        reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=first)
    assert reader.stdin is not None
    try:
        yield reader.stdin.fileno()
    finally:
        reader.stdin.close()
        reader.wait()
