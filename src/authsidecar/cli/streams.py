"""Standard output and standard error, which may be closed, full, or a pipe that nobody reads."""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from typing import TextIO

import click

from authsidecar.cli.errors import OutputError, RefusedError


def write(text: str, *, newline: bool = True, colours: bool | None = None) -> None:
    """Write to standard output, and through all buffers of this process.

    Args:
        text: what is written.
        newline: whether a line ends behind it.
        colours: whether it keeps its colours; None: on a terminal.

    Raises:
        OutputError: it can't be written, or not all of it.
    """
    if sys.stdout is None:
        raise OutputError("it is closed")
    try:
        click.echo(text, nl=newline, color=colours)
    except UnicodeEncodeError as error:
        raise OutputError(f"{error.encoding} can't say {text[error.start]!a}") from None
    except BrokenPipeError:
        raise OutputError("nobody reads it any more", left=True) from None
    except (OSError, ValueError) as error:  # a closed file is a ValueError
        raise OutputError(_why(error)) from None


@contextlib.contextmanager
def done() -> Iterator[None]:
    """Say of a result that can't be written that the command has run.

    Raises:
        RefusedError: it can't be written.
    """
    try:
        yield
    except OutputError as error:
        raise RefusedError(f"{error}; the command has run all the same") from None


def keep() -> None:
    """See that what was written is on the disk, if it goes to a file: some say late that it is not.

    Raises:
        OutputError: it is not.
    """
    with contextlib.suppress(AttributeError, ValueError):  # no file, but something in memory
        descriptor = sys.stdout.fileno()
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.fsync(descriptor)
        except OSError as error:
            raise OutputError(_why(error)) from None


def tell(text: str, *, newline: bool = True) -> None:
    """Write to standard error; what can't be written there can be said nowhere else."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(text, nl=newline, err=True)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is there, and a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def complete() -> None:
    """Open what of descriptors 0 to 2 is closed: a connection would get the number instead.

    Nothing is read from a closed standard input; writing to a closed standard output fails as it
    should; standard error's lines go nowhere.
    """
    for number, how in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, how)  # it gets the lowest number that is free: this one
    sys.stdin = sys.stdin or open(0, closefd=False, encoding="utf-8")  # noqa: SIM115  # they stay
    sys.stdout = sys.stdout or open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115


def leave() -> None:
    """Let the interpreter end without a word about what is left in the buffers."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return "it is closed" if error.errno == errno.EBADF else error.strerror
    return "it is closed"
