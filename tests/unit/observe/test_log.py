"""Lines of the log: one event, one line, no token."""

import io
import json
import logging
import sys
import threading
import warnings

import pytest

from authsidecar.observe.log import Bridge, Log, redact, take_over


def json_log(**how) -> tuple[Log, io.StringIO]:
    stream = io.StringIO()
    return Log(json_lines=True, stream=stream, **how), stream


@pytest.mark.parametrize(
    "text",
    [
        "Bearer 7|s3cret",
        "bearer s3cret",
        "BEARER\ts3cret",
        "b'Authorization: Bearer 7|s3cret' is too long",
        "token 7|s3cret|more",
        "got 1234567|s3cret",
    ],
)
def test_whatever_looks_like_a_token_is_cut_out(text: str) -> None:
    """Pitfall 40: ID|SECRET and whatever follows Bearer, in any case."""
    assert "s3cret" not in redact(text)
    assert "[redacted]" in redact(text)


def test_other_text_is_left_as_it_is() -> None:
    """Numbers, bars and words of their own mean nothing."""
    text = "GET /api/v1/servers | 200 in 3 ms | barer of news"
    assert redact(text) == text


def test_a_json_line_is_one_object_with_time_level_and_event() -> None:
    """Newlines and odd characters in values stay inside the line."""
    log, stream = json_log()
    log.event("info", "listening", address="a\nb", odd="\ud800é", number=1)
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert list(found) == ["time", "level", "event", "address", "odd", "number"]
    assert (found["level"], found["event"], found["address"]) == ("info", "listening", "a\nb")
    assert found["time"].endswith("Z")
    assert line.isascii()


def test_events_below_the_level_are_dropped() -> None:
    """The threshold holds for events; decisions have a setting of their own."""
    log, stream = json_log(level="warning")
    log.event("info", "quiet")
    log.event("error", "loud")
    log.line("info", "decision", {})
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == [
        "loud",
        "decision",
    ]


def test_a_closed_stream_is_no_error() -> None:
    """A log that nobody reads any more must not end the process."""
    log, stream = json_log()
    stream.close()
    log.event("info", "unheard")


def test_a_line_for_people_leaves_out_what_is_none() -> None:
    """Short, with colours only where asked for."""
    stream = io.StringIO()
    Log(json_lines=False, stream=stream).line("info", "decision", {"outcome": "deny", "user": None})
    line = stream.getvalue()
    assert line.endswith("decision outcome=deny\n")
    assert "\x1b" not in line
    coloured = io.StringIO()
    Log(json_lines=False, stream=coloured, colours=True).line("info", "d", {"outcome": "deny"})
    assert coloured.getvalue().startswith("\x1b[33m")


def test_what_libraries_log_is_redacted_and_has_no_traceback() -> None:
    """Pitfall 40: aiohttp's own error quotes the header that it could not read."""
    log, stream = json_log(level="debug")
    library = logging.getLogger("test.log.library")
    library.setLevel(logging.DEBUG)
    library.propagate = False
    library.handlers = [Bridge(log)]
    try:
        int("Bearer 7|s3cret")
    except ValueError:
        library.exception("Error handling %s", "b'Bearer 7|s3cret'")
    library.warning("careful")
    library.debug("detail")
    first, second, third = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["error"], first["logger"]) == (
        "error",
        "ValueError",
        "test.log.library",
    )
    assert (second["level"], third["level"]) == ("warning", "debug")
    assert "s3cret" not in stream.getvalue()
    assert "Traceback" not in stream.getvalue()


def test_what_python_itself_says_is_a_line_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning, an error in a destructor or a thread: standard error might block its writer."""
    log, stream = json_log()
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    class Broken:
        def __del__(self) -> None:
            raise ValueError("7|s3cret")

    def broken() -> None:
        raise KeyError("7|s3cret")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        try:
            take_over(log)
            warnings.warn("careful", RuntimeWarning, stacklevel=1)
            Broken()
            thread = threading.Thread(target=broken, name="worker")
            thread.start()
            thread.join()
        finally:
            logging.captureWarnings(capture=False)
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in found] == ["library", "defect", "defect"]
    assert [line["error"] for line in found] == [None, "ValueError", "KeyError"]
    assert "careful" in found[0]["message"]
    assert "s3cret" not in stream.getvalue()
