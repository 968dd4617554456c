"""Reading the client's address from the right end of X-Forwarded-For."""

from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from authsidecar.decision.addresses import Networks, address_bucket, networks, parse_address
from authsidecar.decision.model import Deny, Kind
from authsidecar.decision.proxies.client_ip import (
    CLIENT_ADDRESS_INVALID,
    LONGEST_ENTRY,
    MAX_HOPS,
    _entry,
    client_address,
)

NO_HOPS = Networks()
HOPS = networks(["10.0.0.0/8", "2001:db8:cd::/48"])


@pytest.mark.parametrize(
    ("values", "client"),
    [
        ([b"192.0.2.1"], "192.0.2.1"),
        ([b" 192.0.2.1\t"], "192.0.2.1"),
        ([b"6.6.6.6, 1.1.1.1"], "1.1.1.1"),
        ([b"6.6.6.6", b"1.1.1.1"], "1.1.1.1"),
        ([b"junk, 1.1.1.1, 10.0.0.1"], "1.1.1.1"),
        ([b"6.6.6.6,1.1.1.1,10.0.0.1", b"2001:db8:cd::7 , 10.9.9.9"], "1.1.1.1"),
        ([b"10.0.0.3, 10.0.0.2", b"10.0.0.1"], "10.0.0.3"),
        ([b"10.0.0.1"], "10.0.0.1"),
        ([b"1.1.1.1, ::ffff:10.0.0.1"], "1.1.1.1"),
        ([b"::ffff:192.0.2.1"], "192.0.2.1"),
        ([b"2001:DB8:0:0::1"], "2001:db8::1"),
        ([b"192.0.2.1:443"], "192.0.2.1"),
        ([b"[2001:db8::1]"], "2001:db8::1"),
        ([b"[2001:db8::1]:65535, 10.0.0.1:80"], "2001:db8::1"),
        ([b"[::ffff:192.0.2.1]:80"], "192.0.2.1"),
    ],
)
def test_the_client_is_the_rightmost_that_is_no_trusted_hop(
    values: Sequence[bytes], client: str
) -> None:
    """What stands left of the first untrusted address was written by strangers."""
    assert client_address(values, HOPS) == ip_address(client)


def test_without_trusted_hops_the_last_address_counts() -> None:
    """Nothing is skipped by default, not even a private or loopback address."""
    assert client_address([b"1.1.1.1, 127.0.0.1"], NO_HOPS) == ip_address("127.0.0.1")


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b" "],
        [b"unknown"],
        [b"1.1.1.1,"],
        [b"X1.1.1.1"],
        [b"1.1.1.1X"],
        [b"1.1.1.1", b""],
        [b"1.1.1.1,,10.0.0.1"],
        [b"1.1.1.1, junk, 10.0.0.1"],
        [b", 10.0.0.1"],
        [b"fe80::1%eth0"],
        [b"[fe80::1%eth0]:80"],
        [b"010.0.0.1"],
        [b"192.0.2.1:"],
        [b"192.0.2.1:123456"],
        [b"192.0.2.1:80:80"],
        [b"[192.0.2.1]:80"],
        [b"[2001:db8::1"],
        [b"[]"],
        [b":80"],
        [b"1.2.3"],
        [b"16909060"],
        [b"\x01\x02\x03\x04"],
        [b"\x01\x02\x03:"],
        [b"::1\n"],
        [b"\xff"],
        ["٣.1.1.1".encode()],
        [b"192.0.2.1 10.0.0.1"],
        [b"x" * 10_000],
    ],
)
def test_an_unreadable_entry_on_the_way_is_refused(values: Sequence[bytes]) -> None:
    """No address is guessed: the request is malformed, and the text is not repeated."""
    verdict = client_address(values, HOPS)
    assert isinstance(verdict, Deny)
    assert verdict.reason == CLIENT_ADDRESS_INVALID
    assert (verdict.reason.kind, verdict.reason.status) == (Kind.MALFORMED, 400)
    assert "junk" not in verdict.detail


def test_the_walk_ends_after_64_entries() -> None:
    """A chain of 64 is read to its end; one more is refused however long it is."""
    assert client_address([b"1.1.1.1" + b",10.0.0.1" * 63], HOPS) == ip_address("1.1.1.1")
    for longer in (64, 65, 3000):
        verdict = client_address([b"1.1.1.1" + b",10.0.0.1" * longer], HOPS)
        assert isinstance(verdict, Deny)
        assert verdict.detail == "more than 64 trusted hops"
    assert client_address([b"1.1.1.1," * 3000 + b"2.2.2.2"], HOPS) == ip_address("2.2.2.2")


def test_an_address_is_the_whole_text_or_nothing() -> None:
    """No port, bracket, zone, blank, packed bytes or leading zero is part of an address."""
    for text in ("", " ::1", "::1 ", "fe80::1%1", "[::1]", "1.2.3.04", "::ffff:1.2.3.04", "²::"):
        assert parse_address(text) is None
    assert parse_address(b"\0" * 16) is None
    assert parse_address(b"::FFFF:C000:0201") == ip_address("192.0.2.1")
    assert parse_address("0000:0000:0000:0000:0000:ffff:192.168.100.228") == ip_address(
        "192.168.100.228"
    )


@pytest.mark.parametrize(
    ("address", "prefix", "bucket"),
    [
        ("192.0.2.7", 64, "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::/64"),
        ("2001:db8:1:2ff::1", 56, "2001:db8:1:200::/56"),
        ("2001:db8::1", 128, "2001:db8::1/128"),
        ("2001:db8::1", 48, "2001:db8::/48"),
    ],
)
def test_one_ipv6_network_is_one_bucket(address: str, prefix: int, bucket: str) -> None:
    """A client cannot leave its bucket by changing address within its own network."""
    assert address_bucket(ip_address(address), prefix) == bucket


def test_long_junk_is_not_kept_in_memory() -> None:
    """What a stranger sends fills the cache with short keys only."""
    _entry.cache_clear()
    assert isinstance(client_address([b"x" * 10_000], NO_HOPS), Deny)
    assert isinstance(client_address([b"x" * (LONGEST_ENTRY + 1)], NO_HOPS), Deny)
    assert _entry.cache_info().currsize == 0
    assert isinstance(client_address([b"x" * LONGEST_ENTRY], NO_HOPS), Deny)
    assert _entry.cache_info().currsize == 1


def test_the_detail_says_which_entry_is_wrong() -> None:
    """Counted from the right, where reading begins."""
    found = client_address([b"1.1.1.1, junk, 10.0.0.1"], HOPS)
    assert found == Deny(CLIENT_ADDRESS_INVALID, "entry 2 from the right is no address")
    many = client_address([b",".join([b"10.0.0.1"] * (MAX_HOPS + 2))], HOPS)
    assert many == Deny(CLIENT_ADDRESS_INVALID, f"more than {MAX_HOPS} trusted hops")


def test_the_longest_entry_that_is_read() -> None:
    """What is longer is no address, whatever it says."""
    text = b"1:2:3:4:5:6:7:8%" + b"x" * LONGEST_ENTRY
    assert isinstance(client_address([text], HOPS), Deny)
    padded = b"0" * (LONGEST_ENTRY - 7) + b"1.1.1.1"
    assert isinstance(client_address([padded], HOPS), Deny)
