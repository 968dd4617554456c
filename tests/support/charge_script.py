"""The charge script on a real Redis, with the time that a test chooses."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import redis

from authsidecar.decision.model import Limit
from authsidecar.decision.ratelimit.sliding_window import Counted
from authsidecar.store.calls import charge_script

STALE, ADMITTED, REFUSED, REPEAT = range(4)


class Counter(NamedTuple):
    """A key and what it admits."""

    key: str
    limit: Limit


@dataclass(frozen=True)
class Ask:
    """One request of a script call.

    Attributes:
        counters: what it is charged to.
        peek: look, and charge nothing.
        marker: the key that makes a repeat of it free, and for how many milliseconds.
        proofs: nonce keys with the values expected.
    """

    counters: tuple[Counter, ...] = ()
    peek: bool = False
    marker: tuple[str, int] | None = None
    proofs: tuple[tuple[str, str], ...] = ()


class Answered(NamedTuple):
    """What the script said to one request."""

    status: int
    stale: int
    counted: tuple[tuple[int, int], ...]  # remaining, reset_at

    @property
    def admitted(self) -> bool:
        return self.status in {ADMITTED, REPEAT}

    @property
    def retry_at(self) -> int:
        """When the last of the full counters opens."""
        return max(reset_at for remaining, reset_at in self.counted if remaining == 0)


class ChargeScript:
    """Calls the very script that the sidecar sends."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._script = client.register_script(charge_script())

    def call(self, now: int | None, asks: Sequence[Ask]) -> tuple[int, list[Answered]]:
        """One script call; `now` None is Redis's own clock."""
        keys: list[str] = []
        args: list[str | int] = ["" if now is None else now]
        for ask in asks:
            keys += [key for key, _ in ask.proofs]
            form = [len(ask.proofs), ask.marker[1] if ask.marker else 0, int(not ask.peek)]
            if ask.marker:
                keys.append(ask.marker[0])
            for key, limit in ask.counters:
                keys.append(key)
                form += [limit.requests, limit.window_ms]
            args += [json.dumps(form), *(value for _, value in ask.proofs)]
        at, *rows = self._script(keys, args)
        return at, [
            Answered(status, stale, tuple(zip(numbers[::2], numbers[1::2], strict=True)))
            for status, stale, *numbers in rows
        ]

    def ask(self, now: int | None, *counters: Counter, peek: bool = False) -> Answered:
        """One request, no marker, no proofs."""
        return self.call(now, [Ask(counters, peek=peek)])[1][0]

    def peek_later(self, now: int, *counters: Counter) -> Answered:
        """What would be said at another time, without disturbing the counters: on copies."""
        copies = []
        for key, limit in counters:
            copy = f"copy:{key}"
            if not self.client.copy(key, copy, replace=True):
                self.client.delete(copy)
            copies.append(Counter(copy, limit))
        return self.ask(now, *copies, peek=True)


def as_said(counted: tuple[Counted, ...]) -> tuple[tuple[int, int], ...]:
    """The model's answer in the script's words."""
    return tuple((c.remaining, c.reset_at) for c in counted)
