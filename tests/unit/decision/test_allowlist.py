"""The allowlist, against Coolify's own behaviour row by row and on its own promises."""

import json
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest

from authsidecar.decision.addresses import Networks, networks, parse_address, parse_network
from authsidecar.decision.allowlist import AllowlistError, parse, parse_lenient, wildcards

DATA = Path(__file__).parents[2] / "data"

# The specification's sentences by which we differ from Coolify, word for word.
PARSED_ONCE = (
    "Allowlist text is parsed once, when it is saved: a bad entry is refused with a message that "
    "names it; empty text, or nothing but commas and blanks, means everyone."
)
WILDCARDS = (
    "`0.0.0.0` alone means everyone, both families; `0.0.0.0/0` every IPv4, `::/0` every IPv6; "
    "`0.0.0.0/8` means that network."
)
BAD_SKIPPED = (
    "A bad entry that arrives from Coolify's own table is skipped with a warning, never widened; "
    "a list of only bad entries admits nobody."
)
UNMAPPED = "IPv4-mapped IPv6 is unmapped."

ADMISSION_DIFFERS = {
    ('"0"', "203.0.113.9"): BAD_SKIPPED,
    ('"0,0"', "203.0.113.9"): BAD_SKIPPED,
    ('"0.0.0.0/32"', "203.0.113.9"): WILDCARDS,
    ('"0.0.0.0/abc"', "203.0.113.9"): BAD_SKIPPED,
    ('"0.0.0.0/8"', "2001:db8::5"): WILDCARDS,
    ('"10.0.0.0/abc"', "203.0.113.9"): BAD_SKIPPED,
    ('"10.0.0.0/8abc"', "10.1.1.1"): BAD_SKIPPED,
    ('"10.0.0.0/8.9"', "10.1.1.1"): BAD_SKIPPED,
    ('"10.0.0.0/0x8"', "203.0.113.9"): BAD_SKIPPED,
    ('"10.0.0.0//8"', "203.0.113.9"): BAD_SKIPPED,
    ('"2001:DB8::1"', "2001:db8::1"): PARSED_ONCE,
    ('"2001:db8::/"', "2001:dead::1"): BAD_SKIPPED,
    ('"::ffff:10.0.0.1"', "10.0.0.1"): UNMAPPED,
    ('"::ffff:0:0/96"', "10.0.0.1"): UNMAPPED,
    ('"10.0.0.0/8"', "::ffff:10.1.2.3"): UNMAPPED,
}

VALIDITY_DIFFERS = {
    '"0"': PARSED_ONCE,
    '"0,0"': PARSED_ONCE,
    '"0.0.0.0/abc"': PARSED_ONCE,
    '"0.0.0.00"': PARSED_ONCE,
    '"0.0.0.0abc"': PARSED_ONCE,
    '"0.0.0.0/99"': PARSED_ONCE,
    '"10.0.0.0/8.9"': PARSED_ONCE,
    '"10.0.0.0/1e1"': PARSED_ONCE,
    '"192.168.1.0/1e1"': PARSED_ONCE,
    '"192.168.1.0/8.5"': PARSED_ONCE,
    '"1.1.1.1,0"': PARSED_ONCE,
}

DEDUPE_DIFFERS = {
    '["  10.0.0.1  "]': PARSED_ONCE,
    '["0.0.0.0/24","10.0.0.1"]': WILDCARDS,
    '["bad","10.0.0.1"]': BAD_SKIPPED,
    '["10.0.0.0/abc","10.0.0.1"]': BAD_SKIPPED,
    '["10.0.0.0/-1","10.0.0.1"]': BAD_SKIPPED,
    '["::ffff:10.0.0.1","10.0.0.1"]': UNMAPPED,
}


def rows(name: str) -> list[list[str]]:
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#")
    return [line.split("\t") for line in lines[1:]]


def is_valid(text: str | None) -> bool:
    try:
        parse(text or "")
    except AllowlistError:
        return False
    return True


def admits(text: str | None, client: str) -> bool:
    allowlist, _ = parse_lenient(text)
    address = parse_address(client)
    return address is not None and allowlist.admits(address)


def test_every_admission_agrees_with_coolify_or_is_explained() -> None:
    """Each of Coolify's 61 list-and-address cases is equal, or one sentence says why not."""
    cases = rows("allowlist-cases.tsv")
    ours = {(text, ip): admits(json.loads(text), ip) for text, ip, *_ in cases}
    theirs = {(text, ip): expected == "allow" for text, ip, expected, *_ in cases}
    assert len(cases) == len(ours) == 61
    assert {case for case in ours if ours[case] != theirs[case]} == set(ADMISSION_DIFFERS)


def validity_cases() -> Iterator[tuple[str, str]]:
    yield from ((text, validity) for text, _, _, validity, _ in rows("allowlist-cases.tsv"))
    yield from ((text, validity) for text, validity in rows("allowlist-validation-cases.tsv"))


def test_every_validity_agrees_with_coolify_or_is_explained() -> None:
    """What Coolify's form accepts is accepted, or one sentence says why not; no more than that."""
    cases = list(validity_cases())
    differ = {
        text for text, validity in cases if is_valid(json.loads(text)) != (validity == "valid")
    }
    assert len(cases) == 61 + 34
    assert differ == set(VALIDITY_DIFFERS)


def test_nothing_that_coolify_refuses_to_save_is_saved() -> None:
    """Strict reading is never looser than Coolify's own form."""
    refused = [json.loads(text) for text, validity in validity_cases() if validity == "invalid"]
    assert [text for text in refused if is_valid(text)] == []


def test_every_deduplication_agrees_with_coolify_or_is_explained() -> None:
    """Each of Coolify's 25 lists is reduced to the same entries, or one sentence says why not."""
    cases = rows("dedupe-cases.tsv")
    differ = set()
    for given, expected in cases:
        allowlist, _ = parse_lenient(",".join(json.loads(given)))
        if list(allowlist.entries) != json.loads(expected):
            differ.add(given)
    assert len(cases) == 25
    assert differ == set(DEDUPE_DIFFERS)


@pytest.mark.parametrize("text", [None, "", ",", " , \t,\n,\0", " \x0b"])
def test_an_empty_list_means_everyone(text: str | None) -> None:
    """Unset, blank and commas alone list nothing, so both families may call."""
    allowlist, bad = parse_lenient(text)
    assert (allowlist.everyone, allowlist.entries, allowlist.text, bad) == (True, (), "", ())
    assert admits(text, "192.0.2.1")
    assert admits(text, "2001:db8::1")


def test_a_list_of_only_bad_entries_admits_nobody_even_after_being_stored() -> None:
    """What is written for such a list never comes back as empty text, which is everyone."""
    allowlist, bad = parse_lenient("10.0.0.0/33, example.com")
    assert bad == ("10.0.0.0/33", "example.com")
    again, _ = parse_lenient(allowlist.text)
    assert not allowlist.everyone
    assert again == allowlist
    assert not again.admits(ip_address("10.0.0.1"))
    assert not again.admits(ip_address("::1"))


def test_bad_entries_do_not_spoil_the_good_ones() -> None:
    """From Coolify's table the good entries count and the bad ones are reported."""
    allowlist, bad = parse_lenient("*,192.0.2.0/24,fe80::1%eth0")
    assert bad == ("*", "fe80::1%eth0")
    assert allowlist.text == "192.0.2.0/24"


@pytest.mark.parametrize(
    ("text", "admitted", "refused"),
    [
        ("0.0.0.0", ("192.0.2.1", "2001:db8::1"), ()),
        ("10.0.0.1,0.0.0.0", ("192.0.2.1", "2001:db8::1"), ()),
        ("0.0.0.0/0", ("192.0.2.1", "::ffff:192.0.2.1"), ("2001:db8::1",)),
        ("::/0", ("2001:db8::1",), ("192.0.2.1", "::ffff:192.0.2.1")),
        ("0.0.0.0/8", ("0.1.2.3",), ("10.0.0.1", "2001:db8::1")),
        ("0.0.0.0/32", ("0.0.0.0",), ("0.0.0.1", "::")),
        ("192.0.2.77/24", ("192.0.2.0", "192.0.2.255"), ("192.0.1.255", "192.0.3.0")),
        ("::ffff:10.0.0.0/104", ("10.255.255.255", "::ffff:10.0.0.1"), ("11.0.0.0", "::1")),
        ("::ffff:10.0.0.0/95", ("::fffe:1:2",), ("10.0.0.1",)),
        ("::ffff:0.0.0.0", ("0.0.0.0",), ("192.0.2.1", "2001:db8::1")),
        ("10.0.0.0/ 8", ("10.255.0.1",), ("11.0.0.0",)),
        ("2001:DB8:0:0::1", ("2001:db8::1",), ("2001:db8::2",)),
    ],
)
def test_an_entry_admits_what_it_spells_and_no_more(
    text: str, admitted: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    """Wildcards, host bits and mapped addresses mean the same in the list and in the client."""
    allowlist = parse(text)
    assert parse_lenient(text) == (allowlist, ())
    assert [ip for ip in admitted if not admits(text, ip)] == []
    assert [ip for ip in refused if admits(text, ip)] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.0/33", "entry 1, '10.0.0.0/33': the mask is not 0 to 32"),
        ("::1,2001:db8::/129", "entry 2, '2001:db8::/129': the mask is not 0 to 128"),
        ("10.0.0.0/" + "9" * 50, f"entry 1, '10.0.0.0/{'9' * 50}': the mask is not 0 to 32"),
        ("10.0.0.0/abc", "entry 1, '10.0.0.0/abc': the mask is not a whole number"),
        ("10.0.0.0/-1", "entry 1, '10.0.0.0/-1': the mask is not a whole number"),
        ("10.0.0.0/²", "entry 1, '10.0.0.0/\\xb2': the mask is not a whole number"),
        ("10.0.0.0/24/32", "entry 1, '10.0.0.0/24/32': the mask is not a whole number"),
        ("10.0.0.0/", "entry 1, '10.0.0.0/': the mask is empty"),
        ("/24", "entry 1, '/24': the address is missing"),
        ("10.0.0.1,010.0.0.0/8", "entry 2, '010.0.0.0/8': octets have no leading zeros"),
        ("fe80::1%eth0", "entry 1, 'fe80::1%eth0': zone ids are not accepted"),
        ("[::1]", "entry 1, '[::1]': write IPv6 without brackets"),
        (
            "192.0.2.1-192.0.2.9",
            "entry 1, '192.0.2.1-192.0.2.9': ranges are not accepted; use a CIDR",
        ),
        (
            "192.0.2.1\n192.0.2.2",
            "entry 1, '192.0.2.1\\n192.0.2.2': blank or line break inside; use commas",
        ),
        (
            "my-host.example",
            "entry 1, 'my-host.example': not an IP address (host names are not looked up)",
        ),
        (",,0", "entry 1, '0': not an IP address (host names are not looked up)"),
        ("x" * 99, f"entry 1, '{'x' * 60}': not an IP address (host names are not looked up)"),
        ("0.0.0.0,bad", "entry 2, 'bad': not an IP address (host names are not looked up)"),
    ],
)
def test_a_refusal_names_the_entry_its_place_and_what_is_wrong(text: str, message: str) -> None:
    """An operator can correct the list from the one line that refuses it."""
    with pytest.raises(AllowlistError) as refusal:
        parse(text)
    assert str(refusal.value) == message
    assert message.isprintable()


def test_redundant_entries_are_dropped_and_spellings_kept() -> None:
    """A covered entry goes, of two equal ones the second goes, the rest stays as written."""
    text = " 2001:DB8::1 ,10.1.0.0/16, 10.0.0.7/8,2001:db8:0::1/128,192.0.2.9/32,192.0.2.9"
    assert parse(text).entries == ("2001:DB8::1", "10.0.0.7/8", "192.0.2.9/32")
    assert parse("10.0.0.1,0.0.0.0,::/0").entries == ("0.0.0.0",)


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("", ()),
        ("192.0.2.1,0.0.0.0", ("0.0.0.0",)),
        ("192.0.2.1/0,2001:db8::1", ("192.0.2.1/0",)),
        ("::/0,0.0.0.0/0", ("::/0", "0.0.0.0/0")),
        ("::ffff:0:0/96", ("::ffff:0:0/96",)),
        ("0.0.0.0/8,::/1", ()),
    ],
)
def test_each_wildcard_is_named(text: str, warned: tuple[str, ...]) -> None:
    """The entries that open a whole family are those that a warning must show."""
    assert wildcards(parse(text)) == warned


def test_ten_thousand_entries_cost_one_lookup_per_prefix_length() -> None:
    """The work of one question depends on how many mask lengths there are, not entries."""
    text = ",".join(f"10.{n >> 8}.{n & 255}.0/24" for n in range(0, 20_000, 2))
    allowlist = parse(text)
    assert len(allowlist.entries) == 10_000
    assert len(allowlist.networks.ipv4) == 1
    assert allowlist.admits(ip_address("10.78.30.255"))
    assert not allowlist.admits(ip_address("10.78.31.0"))


def test_a_setting_of_networks_names_its_bad_entry() -> None:
    """A trusted network that cannot be read stops the start with its name, in one line."""
    assert networks([]) == Networks()
    assert ip_address("192.0.2.9") in networks(["2001:db8::/32", "192.0.2.0/24"])
    with pytest.raises(ValueError, match=r"^'10\.0\.0\.0/40': the mask is not 0 to 32$"):
        networks(["::1", "10.0.0.0/40"])
    assert parse_network("10.9.9.9/8") == IPv4Network("10.0.0.0/8")
    assert parse_network("::ffff:10.9.9.9/120") == IPv4Network("10.9.9.0/24")


@pytest.mark.parametrize("mask", ["\x0b8", "X8", "8X", "0008", "+8"])
def test_a_mask_is_three_digits_at_most_and_nothing_else(mask: str) -> None:
    """Blanks and tabs before it are Coolify's; nothing else is left out."""
    assert parse_network("10.0.0.0/ \t8") == IPv4Network("10.0.0.0/8")
    with pytest.raises(ValueError, match=r"^the mask is not"):
        parse_network(f"10.0.0.0/{mask}")


def test_the_widest_network_is_looked_for_first() -> None:
    """An address that is in several is found by one look, most often."""
    found = networks(["10.0.0.1", "10.0.0.0/8", "10.0.0.0/24"])
    assert [shift for shift, _ in found.ipv4] == [24, 8, 0]
