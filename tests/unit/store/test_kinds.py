"""What each key in Redis is for."""

import re
from pathlib import Path

import pytest

from authsidecar.store.kinds import KINDS, kind_of

PAGE = Path(__file__).parents[3] / "docs/reference/redis-keys.md"

WORDS = {
    "ID:EXPIRY:HOURS:CHANNEL": "2:1800000000000:24:mail",
    "{SLOT}": "{u:7}",
    "SECONDS:START": "10:1800000000",
    "NOUN": "token",
    "BUCKET": "200",
    "NUMBER": "3",
    "DIGEST": "0f" * 16,
    "NAME": "user",
    "WHOSE": "token",
    "ID": "7",
}


def documented() -> list[str]:
    """A key for each row of the reference."""
    rows = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    for word, sample in WORDS.items():
        rows = [row.replace(word, sample) for row in rows]
    return rows


@pytest.mark.parametrize("name", documented())
def test_every_key_has_a_kind(name: str) -> None:
    """Who adds one says what becomes of it when the state is moved."""
    assert kind_of(name) is not None


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("token:7", "state"),
        ("team:7:members", "state"),
        ("rate:{u:7}:uses:67", "state"),
        ("rate:{u:7}:user", "counter"),
        ("rate:{a:2001:db8::/64}:failed", "counter"),
        ("team:7:tokens", "index"),
        ("user:7:teams", "index"),
        ("nonce:{u:7}", "passing"),
        ("{sync}:status", "state"),
        ("{sync-5}:epoch", "passing"),
        ("token:7:lock:{authsidecar:token:7}", "passing"),
    ],
)
def test_a_key_is_moved_as_it_is_worth(name: str, role: str) -> None:
    """State always, counters if wanted, the rest never."""
    kind = kind_of(name)
    assert kind is not None
    assert kind.role == role


@pytest.mark.parametrize("name", ["", "token:", "token:x", "token:7:novelty", "novelty", "TOKEN:7"])
def test_what_is_not_known_has_none(name: str) -> None:
    """Nothing is guessed from a beginning."""
    assert kind_of(name) is None


def test_only_what_is_passing_or_an_index_may_be_of_any_type() -> None:
    """What is moved is read by its type."""
    assert {kind.role for kind in KINDS} == {"state", "index", "counter", "passing"}
