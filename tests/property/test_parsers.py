"""Laws of the parsers, against slow models that share no code with them."""

import re
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import quote, unquote, unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from authsidecar.decision.addresses import Networks, address_bucket, networks, parse_address
from authsidecar.decision.allowlist import AllowlistError, parse, parse_lenient
from authsidecar.decision.credentials import find
from authsidecar.decision.model import Credential, Deny, TokenId
from authsidecar.decision.proxies.client_ip import client_address
from authsidecar.decision.proxies.target import AMBIGUOUS_TARGET, METHOD_OVERRIDE, canonicalise
from tests.support import before

HEX = "0123456789abcdefABCDEF"
PIECES = st.sampled_from(
    b"/ /api /v1 api mcp a . .. /.. %2e %2E %61 %20 %2f % %2 %25 %7c ; \\ # ? _method & "
    b"= + index.php %69 ~ - @ \xff %ff %00 %23 %C3%BC %c3 %bc %E6%97%A5 %CC%81 %F0%9F%9A%80 "
    b"%C0%AF %ED%A0%80 %E2%80%AE %E2%80%A8 %C2%85 %E3%80%80 %EF%BC%8F".split()
)
TARGETS = st.one_of(
    st.lists(PIECES, max_size=12).map(lambda pieces: b"/" + b"".join(pieces)),
    st.lists(PIECES, max_size=6).map(b"".join),
    st.binary(max_size=24).map(lambda tail: b"/" + tail),
)


def rawurldecode(text: bytes) -> bytes:
    """PHP's, one byte at a time: what is no escape stays."""
    out = bytearray()
    at = 0
    while at < len(text):
        pair = text[at + 1 : at + 3].decode("latin-1")
        if text[at] == ord("%") and len(pair) == 2 and pair[0] in HEX and pair[1] in HEX:
            out.append(int(pair, 16))
            at += 3
        else:
            out.append(text[at])
            at += 1
    return bytes(out)


def laravel_path(target: bytes) -> bytes:
    """The text that Laravel matches its routes against (coolify-semantics, section 10)."""
    uri = target.split(b"#")[0].split(b"?")[0]
    for end in range(len(uri) + 1):
        if rawurldecode(uri[:end]).lower() == b"/index.php":
            rest = uri[end:]
            uri = rest if rest.startswith(b"/") else b"/" + rest
            break
    while uri.endswith(b"/"):
        uri = uri[:-1]
    return rawurldecode(uri) or b"/"


@given(TARGETS)
@example(b"/%61pi/v1/teams/?x=/index.php")
@example(b"/index.php/api")
def test_an_accepted_path_is_the_one_that_laravel_routes(target: bytes) -> None:
    """Whatever is accepted, Laravel's own path is byte for byte the path that is judged."""
    verdict = canonicalise(target)
    if isinstance(verdict, str):
        assert verdict.encode() == laravel_path(target)


@given(TARGETS)
def test_an_accepted_path_has_one_reading_left(target: bytes) -> None:
    """No empty or dot segment, no character that can't be printed, no trailing slash."""
    verdict = canonicalise(target)
    if isinstance(verdict, str):
        assert verdict.startswith("/")
        assert verdict.replace("\u3000", " ").isprintable()  # the one blank among PIECES
        assert verdict == "/" or {"", ".", ".."}.isdisjoint(verdict[1:].split("/"))
        assert not verdict.lower().startswith("/index.php")
        assert not set(verdict) & set("\\%?;")


@given(TARGETS)
@example(b"/api/v1/a%20b%7C")
def test_encoding_an_accepted_path_again_changes_nothing(target: bytes) -> None:
    """The path is a fixed point: however often it is encoded and read, it stays."""
    verdict = canonicalise(target)
    if isinstance(verdict, str):
        assert canonicalise(quote(verdict).encode()) == verdict
        assert canonicalise(
            "".join(f"%{b:02x}" if b != ord("/") else "/" for b in verdict.encode()).encode()
        ) == (verdict)


NEW = re.compile(rb"%23|(?:%[89A-Fa-f][0-9A-Fa-f])+")
"""What the canonicaliser has learned to read: `#` and bytes past ASCII, as escapes."""


@given(TARGETS)
@example(b"/api/v1/projects/u1/pr%C3%BCfung")
@example(b"/api/v1/projects/u1/a%23b/")
@example(b"/api/v1/%ff%23")
@example(b"/index.php%23")
def test_other_paths_than_names_are_read_as_before(target: bytes) -> None:
    """Where the answer is another than the former one, only letters of names are the reason.

    With each of those written as one letter, the former canonicaliser reads the same path.
    """
    path = target.partition(b"?")[0]
    verdict, former = canonicalise(path), before.path(path)
    if verdict != former:
        assert former == Deny(AMBIGUOUS_TARGET, "a refused byte or escape in the path")
        if isinstance(verdict, Deny):  # only the words differ
            assert verdict.reason is AMBIGUOUS_TARGET
        else:
            assert NEW.search(path)
            named = "".join("x" if c == "#" or not c.isascii() else c for c in verdict)
            plain = NEW.sub(lambda run: b"x" * len(unquote_to_bytes(run[0]).decode()), path)
            assert before.path(plain) == named


@given(st.text(st.characters(categories=["L", "M", "N", "S", "Zs"]), min_size=1), st.booleans())
def test_every_name_in_letters_of_any_script_is_one_spelling(name: str, lower: bool) -> None:
    """Percent-encoded, in either case of the hex digits, it is read as the name."""
    escaped = quote(name, safe="")
    spelled = escaped.lower() if lower else escaped
    if unquote(spelled) == name and not set(name) & set("%?;/\\"):
        assert canonicalise(f"/api/v1/projects/u1/{spelled}".encode()) == (
            f"/api/v1/projects/u1/{name}"
        )


def php_keys(query: bytes) -> set[bytes]:
    """The variables that PHP registers, one byte at a time (main/php_variables.c)."""
    keys = set()
    for pair in query.split(b"&"):
        text = bytearray(rawurldecode(pair.split(b"=")[0].replace(b"+", b" ")))
        while text[:1] == b" ":
            del text[0]
        if 0 in text:
            del text[text.index(0) :]
        if text[:1] == b"[":
            continue  # a variable without a name is dropped
        for at, byte in enumerate(text):
            if byte == ord("["):
                if ord("]") in text[at:]:
                    del text[at:]
                else:
                    text[at] = ord("_")
                break
            if byte in b" .":
                text[at] = ord("_")
        keys.add(bytes(text))
    return keys


KEY_PIECES = st.sampled_from(
    [b"_", b"method", b"%5f", b".", b"+", b"%20", b"[", b"]", b"%00", b"=", b"&", b";", b"x", b"%"]
)


@given(st.lists(KEY_PIECES, max_size=8).map(b"".join))
@example(b"_method[;]")
@example(b"[method")
def test_a_method_override_is_refused_exactly_when_php_sees_one(query: bytes) -> None:
    """In the query as it is, or as a proxy leaves it that turns `;` into `&`."""
    seen = b"_method" in php_keys(query) | php_keys(query.replace(b";", b"&"))
    verdict = canonicalise(b"/api?" + query)
    assert (verdict == "/api") is not seen
    if seen:
        assert isinstance(verdict, Deny)
        assert verdict.reason == METHOD_OVERRIDE


@given(st.lists(st.binary(max_size=40), max_size=3))
def test_no_authorization_raises(values: list[bytes]) -> None:
    """Any bytes at all end in a credential or a 401."""
    match find(values):
        case Credential(token_id, digest):
            assert values == [values[0]]
            assert digest == sha256(values[0].split(b"|", 1)[1]).digest()
            assert values[0].lower().startswith(b"bearer %d|" % token_id)
        case Deny(reason):
            assert reason.status == 401


@given(
    st.integers(1, 2**63 - 1),
    st.binary(min_size=1, max_size=60).filter(lambda s: b"," not in s and s != b"0"),
)
def test_every_well_formed_token_is_found(token_id: int, secret: bytes) -> None:
    """No id up to the largest and no secret without a comma is refused."""
    value = b"Bearer %d|%b" % (token_id, secret)
    assert find([value]) == Credential(TokenId(token_id), sha256(secret).digest())


ADDRESSES = st.one_of(
    st.integers(0, 2**32 - 1).map(IPv4Address),
    st.integers(0, 2**128 - 1).map(IPv6Address),
    st.integers(0, 255).map(IPv4Address),
    st.integers(0, 255).map(lambda n: IPv6Address(2**120 + n)),
)
CIDRS = st.builds(
    lambda address, prefix: f"{address}/{min(prefix, address.max_prefixlen)}",
    ADDRESSES,
    st.sampled_from([0, 1, 8, 24, 25, 30, 31, 32, 64, 96, 120, 127, 128]),
)
ENTRIES = st.one_of(ADDRESSES.map(str), CIDRS)


@given(st.lists(ENTRIES, min_size=1, max_size=8), ADDRESSES)
def test_dropping_redundant_entries_changes_nobodys_access(
    entries: list[str], address: IPv4Address | IPv6Address
) -> None:
    """The list admits exactly the union of its entries, before and after it is stored."""
    client = parse_address(str(address))
    assert client is not None
    allowlist = parse(",".join(entries))
    expected = any(entry == "0.0.0.0" or parse(entry).admits(client) for entry in entries)
    assert allowlist.admits(client) == expected
    assert parse(allowlist.text) == allowlist
    assert set(allowlist.entries) <= set(entries)


@given(st.lists(CIDRS, max_size=8), ADDRESSES)
def test_networks_agree_with_the_standard_library(
    texts: list[str], address: IPv4Address | IPv6Address
) -> None:
    """Looking up numbers by prefix length is the same as asking each network."""
    plain = [
        text
        for text in texts
        if ip_address(text.split("/")[0]) == parse_address(text.split("/")[0])
    ]
    expected = any(address in ip_network(text, strict=False) for text in plain)
    assert (address in networks(plain)) == expected


@given(st.text(alphabet="0123456789abf.:/,% -[]\n\0", max_size=40))
def test_lenient_reading_never_admits_more_than_its_good_entries(text: str) -> None:
    """Bad entries are left out, and strict reading accepts exactly the lists without any."""
    allowlist, bad = parse_lenient(text)
    if bad:
        with pytest.raises(AllowlistError) as refusal:
            parse(text)
        assert str(refusal.value).isprintable()
    else:
        assert parse(text) == allowlist
    assert parse_lenient(allowlist.text)[0] == allowlist
    assert not (bad and not allowlist.entries and allowlist.everyone)


@given(ADDRESSES, st.lists(st.binary(max_size=12), max_size=4))
def test_what_a_client_prepends_never_changes_its_address(
    address: IPv4Address | IPv6Address, forged: list[bytes]
) -> None:
    """Everything left of the address that our own proxy wrote is ignored."""
    client = parse_address(str(address))
    assert client is not None
    assert client_address([*forged, str(address).encode()], Networks()) == client


@given(st.integers(0, 2**128 - 1), st.integers(0, 128))
def test_a_bucket_is_the_network_of_the_address(number: int, prefix: int) -> None:
    """The bucket's name is the network that the standard library computes."""
    address = IPv6Address(number)
    assert address_bucket(address, prefix) == str(ip_network((address, prefix), strict=False))
