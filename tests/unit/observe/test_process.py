"""What the operating system says of this process."""

import os

import psutil
import pytest
from prometheus_client import CollectorRegistry

from authsidecar.observe import process
from authsidecar.observe.process import Process


def test_processor_time_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is looked at."""
    monkeypatch.setattr(process, "LOOK_S", 0.0)
    registry = CollectorRegistry()
    here = Process(registry)
    for _ in range(5):
        here.write()
    times = psutil.Process().cpu_times()
    told = registry.get_sample_value("process_cpu_seconds_total")
    assert told == pytest.approx(times.user + times.system, abs=0.2)


def test_a_second_look_within_a_second_costs_nothing() -> None:
    """With thousands of connections the list of descriptors is long."""
    registry = CollectorRegistry()
    here = Process(registry)
    here.write()
    before = registry.get_sample_value("process_open_fds")
    pipe = os.pipe()
    here.write()
    assert registry.get_sample_value("process_open_fds") == before
    for one in pipe:
        os.close(one)
