"""How a time is read and written for scripts (RFC 3339, UTC), and written for people."""

from datetime import UTC, datetime, timedelta
from typing import Final, NewType

UnixMs = NewType("UnixMs", int)
"""Milliseconds since 1970-01-01 UTC, by Redis's clock."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_LONGEST: Final = 40
"""Characters of the longest text that is read as a time."""

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


def parse_rfc3339(text: str) -> UnixMs:
    """Read a time with its zone.

    Raises:
        ValueError: in a few words, what is wrong with the text (which it does not repeat).

    >>> parse_rfc3339("2027-01-15T09:00:00+01:00")
    1800000000000
    """
    problem = "not a time such as 2027-01-31T12:00:00Z"
    if len(text) > _LONGEST or "T" not in text.upper():
        raise ValueError(problem)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(problem) from None
    if time.tzinfo is None:
        raise ValueError("it has no time zone; end it with Z for UTC")
    try:
        milliseconds = (time - _EPOCH) // _MILLISECOND
    except OverflowError:
        raise ValueError(problem) from None
    if milliseconds < 0:
        raise ValueError("it is before 1970")
    return UnixMs(milliseconds)


def for_people(time: UnixMs) -> str:
    """Write a time in UTC to the minute.

    >>> for_people(UnixMs(1_800_000_000_000))
    '2027-01-15 08:00 UTC'
    """
    return _moment(time).strftime("%Y-%m-%d %H:%M UTC")


def date_of(day: int) -> str:
    """Write a day, counted from 1970-01-01.

    >>> date_of(20_833)
    '2027-01-15'
    """
    return (_EPOCH + timedelta(days=day)).date().isoformat()


def _moment(time: UnixMs) -> datetime:
    return _EPOCH + timedelta(milliseconds=min(max(time, 0), LATEST))
