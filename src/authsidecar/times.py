"""How a time is written for scripts (RFC 3339, UTC) and for people."""

from datetime import UTC, datetime, timedelta
from typing import Final, NewType

UnixMs = NewType("UnixMs", int)
"""Milliseconds since 1970-01-01 UTC, by Redis's clock."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST: Final = UnixMs(253_402_300_799_999)
"""The last millisecond of the year 9999; what lies beyond is written as this."""


def rfc3339(time: UnixMs) -> str:
    """Write a time in UTC, with milliseconds only where it has any.

    >>> rfc3339(UnixMs(1_800_000_000_000))
    '2027-01-15T08:00:00Z'
    """
    moment = _moment(time)
    precision = "milliseconds" if moment.microsecond else "seconds"
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def for_people(time: UnixMs) -> str:
    """Write a time in UTC to the minute.

    >>> for_people(UnixMs(1_800_000_000_000))
    '2027-01-15 08:00 UTC'
    """
    return _moment(time).strftime("%Y-%m-%d %H:%M UTC")


def _moment(time: UnixMs) -> datetime:
    return _EPOCH + timedelta(milliseconds=min(max(time, 0), LATEST))
