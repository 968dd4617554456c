"""What the operating system says of this process, under the names that every dashboard knows.

prometheus_client has a collector for that, which shows one process and is not there where several
share their metrics. Here its readings go into series of our own, which are shared like all others.
"""

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

LOOK_S: Final = 1.0
"""The least time between two looks, in seconds: one lists every open descriptor."""


class Process:
    """Processor time, memory and descriptors; of several workers together."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the metrics; `write` fills them.

        Args:
            registry: where the metrics are.
        """
        self._collector = ProcessCollector(registry=None)
        self._looked_at = -LOOK_S
        self._cpu_s = 0.0
        self._cpu = Counter(
            "process_cpu_seconds",
            "Processor time, user's and system's, in seconds.",
            registry=registry,
        )
        # A worker's memory is its own; a limit of descriptors is met by one worker, not by all.
        self._memory = Gauge(
            "process_resident_memory_bytes",
            "Memory in use, in bytes; of all workers.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._open = Gauge(
            "process_open_fds",
            "Open descriptors; of the worker that has most.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._most = Gauge(
            "process_max_fds",
            "How many descriptors one worker may have.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._started = Gauge(
            "process_start_time_seconds",
            "When the newest worker was started, in seconds since 1970.",
            registry=registry,
            multiprocess_mode="livemax",
        )

    def write(self) -> None:
        """Bring the metrics up to date, once a second at the most."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        for found in self._collector.collect():
            value = found.samples[0].value
            match found.name:
                case "process_cpu_seconds":
                    # What a worker that has ended used stays in the sum.
                    self._cpu.inc(max(0.0, value - self._cpu_s))
                    self._cpu_s = value
                case "process_resident_memory_bytes":
                    self._memory.set(value)
                case "process_open_fds":
                    self._open.set(value)
                case "process_max_fds":
                    self._most.set(value)
                case "process_start_time_seconds":
                    self._started.set(value)
                case _:
                    pass
