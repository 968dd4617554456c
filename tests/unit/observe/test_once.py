"""Warnings that are written once."""

import io

from authsidecar.observe.log import Log
from authsidecar.observe.once import Once


def test_a_warning_is_written_once_for_each_thing() -> None:
    """However often it is met; past the bound, nothing more."""
    stream = io.StringIO()
    odd = Once(Log(json_lines=False, stream=stream), "odd", most=2)
    for key in ("a", "a", "b", "a", "c"):
        odd.warn(key=key)
    lines = stream.getvalue().splitlines()
    assert [line.split()[-1] for line in lines] == ["key=a", "key=b"]
    assert all(line.split()[1:3] == ["warning", "odd"] for line in lines)
