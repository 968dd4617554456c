"""Which decisions are traced: the parent says so, then a ratio, and never too many."""

import subprocess
import sys

import pytest

from authsidecar.observe.traces import Parent, Sampler, TracedDecision, traceparent

TRACE, SPAN = 0xA1, 0xB2


def said(version: str = "00", trace: int = TRACE, span: int = SPAN, flags: str = "01") -> bytes:
    return f"{version}-{trace:032x}-{span:016x}-{flags}".encode()


def traces(ratio: float = 0.0, most: int = 1000) -> Sampler:
    made: list[TracedDecision] = []
    return Sampler(made.append, ratio=ratio, max_per_second=most)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (said(), True),
        (said(flags="03"), True),
        (said(flags="00"), False),
        (said(flags="02"), False),
        (said(version="01"), True),
        (said(version="01") + b"-more", True),
    ],
)
def test_a_parent_decides_whatever_the_ratio(ratio: float, value: bytes, sampled: bool) -> None:
    trace = traces(ratio).begin(value)
    assert (trace is not None) == sampled
    if trace is not None:
        assert trace._parent == Parent(TRACE, SPAN)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"01",
        said(version="ff"),
        said(trace=0),
        said(span=0),
        said() + b"-more",
        said().replace(b"a1", b"A1"),
        said() + b" ",
        said()[:-1],
    ],
)
def test_what_is_no_parent_leaves_it_to_the_ratio(value: bytes | None) -> None:
    assert traces(0.0).begin(value) is None
    trace = traces(1.0).begin(value)
    assert trace is not None
    assert trace._parent is None


def test_a_ratio_is_one() -> None:
    """A tenth of ten thousand, within six standard deviations."""
    some = traces(0.1, most=1_000_000)
    assert 820 < sum(some.begin(None) is not None for _ in range(10_000)) < 1180


def test_no_more_than_so_many_a_second_are_traced() -> None:
    """Clients can ask for more: in two seconds, which this takes at most, there are two times 5."""
    some = traces(most=5)
    assert 5 <= sum(some.begin(said()) is not None for _ in range(2000)) <= 10


def test_a_header_that_is_repeated_names_no_trace() -> None:
    assert traceparent([(b"TraceParent", b"a"), (b"tracestate", b"b")]) == b"a"
    assert traceparent([(b"traceparent", b"a"), (b"Traceparent", b"a")]) is None
    assert traceparent([(b"x-traceparent", b"a")]) is None


def test_nothing_that_exports_is_loaded_unless_it_is_set() -> None:
    """redis-py loads a part of OpenTelemetry by itself, where that is installed."""
    code = """
import asyncio, io, sys
import authsidecar.run.sidecar
from authsidecar.config import load
from authsidecar.observe.log import Log
from authsidecar.run.tracing import tracing

async def main():
    async with tracing(load(None, {}), Log(json_lines=True, stream=io.StringIO())) as found:
        assert found is None

asyncio.run(main())
print([name for name in sys.modules if name.endswith((".otlp", "protobuf", "requests"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
