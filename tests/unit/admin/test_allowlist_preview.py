"""An allowlist before it is saved."""

from ipaddress import ip_address

import pytest

from authsidecar.admin.allowlist_preview import MOST_NAMED, preview

CLIENTS = {"192.0.2.7": 90.0, "198.51.100.1": 10.0, "2001:db8::1": 1.0}
ME = ip_address("192.0.2.7")


def test_bad_entries_are_named_with_what_is_wrong():
    """All of them at once, in the words of the refusal to save."""
    found = preview("192.0.2.0/24, example.com, 10.0.0.0/33", caller=None, clients={})
    assert [entry for entry, _ in found.bad] == ["example.com", "10.0.0.0/33"]
    assert "host names are not looked up" in found.bad[0][1]
    assert all(why for _, why in found.bad)
    assert found.kept == ("192.0.2.0/24",)


@pytest.mark.parametrize(
    ("text", "redundant"),
    [
        ("192.0.2.0/24,192.0.2.7", (("192.0.2.7", "192.0.2.0/24"),)),
        ("192.0.2.7,192.0.2.0/24", (("192.0.2.7", "192.0.2.0/24"),)),
        ("192.0.2.7,192.0.2.7", (("192.0.2.7", "192.0.2.7"),)),
        ("2001:db8::1,2001:db8::/32", (("2001:db8::1", "2001:db8::/32"),)),
        ("192.0.2.7,0.0.0.0", (("192.0.2.7", "0.0.0.0"),)),
        ("192.0.2.7,198.51.100.1", ()),
        ("192.0.2.7,nonsense,nonsense", ()),
        ("", ()),
    ],
)
def test_what_is_redundant_is_named_with_what_covers_it(text, redundant):
    """It would be dropped when the list is saved."""
    assert preview(text, caller=None, clients={}).redundant == redundant


def test_a_long_list_is_looked_at_quickly():
    """Of many redundant entries only the first are explained."""
    many = ",".join(f"10.0.{n // 250}.{n % 250}" for n in range(1500))
    found = preview(f"10.0.0.0/8,{many}", caller=None, clients={})
    assert len(found.redundant) == 1500
    assert sum(bool(by) for _, by in found.redundant) == MOST_NAMED


@pytest.mark.parametrize(
    ("text", "shut_out", "locks_out"),
    [
        ("192.0.2.0/24", ("198.51.100.1", "2001:db8::1"), False),
        ("2001:db8::/32", ("192.0.2.7", "198.51.100.1"), True),
        ("", (), False),
        ("0.0.0.0", (), False),
        ("nonsense", tuple(CLIENTS), True),
    ],
)
def test_it_says_whom_it_shuts_out(text, shut_out, locks_out):
    """Of the addresses that were admitted lately, and the author."""
    found = preview(text, caller=ME, clients=CLIENTS)
    assert (found.shut_out, found.clients) == (shut_out, 3)
    assert found.locks_out is locks_out


def test_an_author_who_is_not_known_may_be_locked_out():
    """Nobody can say."""
    assert preview("192.0.2.0/24", caller=None, clients=CLIENTS).locks_out is None
