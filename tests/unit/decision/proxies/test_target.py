"""The canonicaliser: the URI table of real proxies, and PHP's reading of `_method`."""

import random
from unicodedata import category
from urllib.parse import quote, unquote_to_bytes

import pytest

from authsidecar.decision.model import Deny, Kind, Reason
from authsidecar.decision.proxies import target as module
from authsidecar.decision.proxies.target import (
    AMBIGUOUS_TARGET,
    METHOD_OVERRIDE,
    MOST_KEYS,
    TARGET_TOO_LONG,
    _letters,
    canonicalise,
    overrides_method,
)
from authsidecar.decision.routes import ROUTE_UNKNOWN


def refused(target: bytes) -> Reason:
    verdict = canonicalise(target)
    assert isinstance(verdict, Deny), verdict
    return verdict.reason


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", "/"),
        (b"/?", "/"),
        (b"/api", "/api"),
        (b"/api/", "/api"),
        (b"/api/v1/teams", "/api/v1/teams"),
        (b"/api/v1/teams/", "/api/v1/teams"),
        (b"/api/v1/teams/?x=%2e%2e", "/api/v1/teams"),
        (b"/api/v1/teams?a=//../\\;b&c[]=%zz", "/api/v1/teams"),
        (b"/API/v1/teams", "/API/v1/teams"),
        (b"/apix", "/apix"),
        (b"/%61pi/v1/%74eams", "/api/v1/teams"),
        (b"/%6D%63%70", "/mcp"),
        (b"/api/v1/a%20b", "/api/v1/a b"),
        (b"/api/v1/67%7Cabc%7e%7E", "/api/v1/67|abc~~"),
        (b"/api/v1/%22%3c%3E%60%7b%7D%5e", '/api/v1/"<>`{}^'),
        (b"/api/v1/!$&'()*+,-.:=@[]_~", "/api/v1/!$&'()*+,-.:=@[]_~"),
        (b"/api/v1/pr%C3%BCfung", "/api/v1/prüfung"),
        (b"/api/v1/pr%c3%bCfung/", "/api/v1/prüfung"),
        (b"/api/v1/%E6%97%A5%E6%9C%AC", "/api/v1/日本"),
        (b"/api/v1/e%CC%81", "/api/v1/e\u0301"),
        (b"/api/v1/%D9%A3%E2%85%A7", "/api/v1/٣Ⅷ"),
        (b"/api/v1/%F0%9F%9A%80%E2%82%AC%EF%B8%8F", "/api/v1/🚀€\ufe0f"),
        (b"/api/v1/a%E3%80%80b%C2%A0c", "/api/v1/a\u3000b\u00a0c"),
        (b"/api/v1/a=41%20b", "/api/v1/a=41 b"),
        (b"/api/v1/a%23b", "/api/v1/a#b"),
        (b"/api/v1/%23", "/api/v1/#"),
        (b"/api/v1/...", "/api/v1/..."),
        (b"/api/v1/.env", "/api/v1/.env"),
        (b"/api/v1/%2e%2e%2e", "/api/v1/..."),
        (b"/api/index.php", "/api/index.php"),
        (b"/indexXphp", "/indexXphp"),
        (b"/api/" + b"x" * 16379, "/api/" + "x" * 16379),
    ],
)
def test_a_target_with_one_reading_becomes_its_path(target: bytes, path: str) -> None:
    """Decoded once, case kept, one trailing slash dropped, the query left out."""
    assert canonicalise(target) == path


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"*",
        b"?x",
        b"api/v1/teams",
        b"http://evil.test/api/v1/teams",
        b"//",
        b"//api/v1/teams",
        b"/api//v1/teams",
        b"/api/v1/teams//",
        b"/./api",
        b"/api/.",
        b"/api/./",
        b"/api/..",
        b"/api/../dashboard",
        b"/x/../api/v1/teams",
        b"/x/%2e%2e/api",
        b"/x/.%2E/api",
        b"/x/%2e",
        b"/x/..%2fapi",
        b"/x/..;/api",
        b"/api;x=1/v1",
        b"/api\\v1",
        b"/api/v1#frag",
        b"/dashboard#/api/v1",
        b"/api?x=1#frag",
        b"/api/v1/te ams",
        b"/api/v1\t",
        b"/api/v1\0",
        b"/api/v1\x7f",
        b"/api/v1\n",
        b"/api/v1/t\xc3\xa9ams",
        b"/api/v1/\xff",
        b"/api/v1/%",
        b"/api/v1/%6",
        b"/api/v1/%zz",
        b"/api/v1/%u0061",
        b"/api/v1/%2574eams",
        b"/%2561pi",
        b"/api/v1/x%3Fx=1",
        b"/api/v1/x%3b",
        b"/api/v1/x%3B",
        b"/api/v1/%E6%97%A5/%2E%2e",
        b"/api/v1/%E6%97%A5//x",
        b"/api/v1/pr\xc3\xbcf%C3%BCr",
        b"/api/v1/pr%C3\xbcfung",
        b"/api/v1/pr%C3",
        b"/api/v1/%BC",
        b"/api/v1/%FF",
        b"/api/v1/%C0%AF",  # overlong /
        b"/api/v1/%C1%A1",  # overlong a
        b"/api/v1/%E0%80%AF",
        b"/api/v1/%F0%80%80%AF",
        b"/api/v1/%ED%A0%80",  # a surrogate
        b"/api/v1/%ED%A0%BD%ED%BA%80",  # two of them, as CESU-8 has them
        b"/api/v1/%F4%90%80%80",  # past U+10FFFF
        b"/api/v1/%C2%80",  # C1
        b"/api/v1/%C2%85",
        b"/api/v1/%C2%9F",
        b"/api/v1/%C2%AD",  # soft hyphen
        b"/api/v1/%E2%80%8B",  # zero width space
        b"/api/v1/%E2%80%8E",  # left-to-right mark
        b"/api/v1/%E2%80%A8",  # line separator
        b"/api/v1/%E2%80%A9",  # paragraph separator
        b"/api/v1/%E2%80%AA",  # bidirectional embedding
        b"/api/v1/%E2%80%AE",  # bidirectional override
        b"/api/v1/%E2%81%A6",  # bidirectional isolate
        b"/api/v1/%E2%81%A9",
        b"/api/v1/%EF%BB%BF",  # byte order mark
        b"/api/v1/%EF%BC%8F",  # full-width /
        b"/api/v1/%EF%BC%8E%EF%BC%8E",  # full-width ..
        b"/api/v1/%E2%80%A4",  # one dot leader
        b"/api/v1/%EE%80%80",  # private use
        b"/api/v1/%EF%BF%BE",  # never a character
        b"/api?x= 1",
        b"/api?x=\n",
        b"/api?x=\0",
        b"/api?x=\xc3\xa9",
        b"/api?\x7f",
    ],
)
def test_a_target_with_two_readings_is_refused(target: bytes) -> None:
    """Whatever some proxy or Laravel reads otherwise is a 400, never cleaned."""
    assert refused(target) == AMBIGUOUS_TARGET


def test_each_byte_of_a_path_is_accepted_or_refused_as_listed() -> None:
    """Literally and escaped, all 256 bytes follow the reference canonicaliser."""
    literal_refused = {*range(0x21), *range(0x7F, 256), *b'#\\;<>"`{}|^%'}
    escape_refused = {*range(0x20), 0x7F, *range(0x80, 256), *b"/\\%?;"}
    for byte in range(256):
        literal = canonicalise(b"/api/x%cx" % byte)
        if byte in b"/?":  # the only two that mean something
            assert literal == ("/api/x/x" if byte == 0x2F else "/api/x")
        else:
            assert isinstance(literal, Deny) == (byte in literal_refused)
        for escape in (b"%%%02x" % byte, b"%%%02X" % byte):
            verdict = canonicalise(b"/api/x" + escape + b"x")
            assert isinstance(verdict, Deny) == (byte in escape_refused)
            if isinstance(verdict, str):
                assert verdict == f"/api/x{chr(byte)}x"


@pytest.mark.parametrize(
    "target",
    [
        b"/index.php",
        b"/index.php/api/v1/teams",
        b"/%69ndex.php/mcp",
        b"/index%2ephp/api",
        b"/index%2Ephp",
        b"/%49NDEX.PHP/x",
        b"/INDEX.PHP/x",
        b"/Index.Php",
        b"/index.phpapi/v1",
        b"/index.phpmcp",
        b"/index.php?x=1",
        b"/index.php%2Fapi",
        b"/index.php//x/..",
        b"/index.php;x",
        b"/index.php?_method=x",
    ],
)
def test_the_front_controller_is_never_a_route(target: bytes) -> None:
    """Symfony would cut it off and run the API, so it is a 404, whatever follows."""
    assert refused(target) == ROUTE_UNKNOWN


@pytest.mark.parametrize(
    "query",
    [
        b"_method=DELETE",
        b"_method=",
        b"_method",
        b"a=1&_method=delete",
        b"&&_method&",
        b"a=1;_method=PUT",
        b"%5fmethod=x",
        b"%5Fmethod=x",
        b"_%6dethod=x",
        b".method=x",
        b"%2emethod=x",
        b"%20_method=x",
        b"%20%20.method=x",
        b"+_method=x",
        b"++_method=x",
        b"_method%00=x",
        b"_method%00abc=x",
        b"_method[]=x",
        b"_method[a][b]=x",
        b"_method%5b%5d=x",
        b"_method[]abc=x",
        b"_method[;]=x",
        b"?_method=x&_method=y",
        b"_method%00;x",
    ],
)
def test_every_query_key_that_php_reads_as_method_is_refused(query: bytes) -> None:
    """Laravel would run another method than the one that was judged."""
    assert refused(b"/api/v1/servers?" + query) == METHOD_OVERRIDE


@pytest.mark.parametrize(
    "query",
    [
        b"method=x",
        b"_METHOD=x",
        b"_methods=x",
        b"x_method=x",
        b"__method=x",
        b"%20method=x",
        b"+method=x",
        b"_method+=x",
        b"_method.=x",
        b"%00_method=x",
        b"%255fmethod=x",
        b"%09_method=x",
        b"[_method]=x",
        b"[method=x",
        b"a[_method]=x",
        b"_method[=x",
        b"_method[a=x",
        b"_method[%00]=x",
        b"_method%3dx=1",
        b"a=_method",
        b"a=_method=1",
        b"a=1%26_method=1",
        b"%5_method=x",
        b"?_method=x",
    ],
)
def test_a_query_key_that_php_reads_otherwise_passes(query: bytes) -> None:
    """Only PHP's own `_method` is refused; other keys are the client's business."""
    assert canonicalise(b"/api/v1/servers?" + query) == "/api/v1/servers"


def php_finds_method(query: bytes) -> bool:
    """The same, word by word as main/php_variables.c has it, at a cost that does not matter."""

    def name(key: bytes) -> bytes:
        name, _, _ = unquote_to_bytes(key.replace(b"+", b" ")).partition(b"\0")
        name, bracket, index = name.lstrip(b" ").partition(b"[")
        if name and bracket and b"]" not in index:
            name += b"_" + index  # an array that is never closed is a plain name after all
        return name.replace(b" ", b"_").replace(b".", b"_")

    keys = query.split(b"&") + query.replace(b";", b"&").split(b"&")
    return any(name(key.partition(b"=")[0]) == b"_method" for key in keys)


def test_each_letter_of_the_key_is_one_literal_or_one_escape() -> None:
    """In either case of the hex digits, and of no other letter."""
    assert _letters("mo") == "(?:m|%6[Dd])(?:o|%6[Ff])"
    assert _letters("") == ""


def test_eight_arrays_that_never_close_are_looked_at() -> None:
    """PHP reads each as a plain name; whoever sends more of them means to hide one."""
    assert not overrides_method(b"&".join([b"_method[a"] * 8))
    assert overrides_method(b"&".join([b"_method[a"] * 9))
    assert overrides_method(b"&".join([b"_method[a"] * 7 + [b"_method[a]"]))


PIECES = (
    *(b"_method", b"_", b"m", b"ethod", b"%6d", b"%6D", b"%5f", b"%5F", b"%2e", b"%2E", b"."),
    *(b"[", b"]", b"%5b", b"%5D", b"&", b"&", b";", b"=", b"%00", b"+", b"%20", b"x", b"%", b"%5"),
    *(b"%26", b"%3d", b"%68", b"%74eth", b"etho%64", b"%65tho%64", b"%4d", b"%6f", b"%6F"),
)


def test_a_key_is_an_override_exactly_where_php_reads_one() -> None:
    """Ten thousand queries of the pieces that matter, put together by chance."""
    chance = random.Random(17)
    found = 0
    for _ in range(10_000):
        query = b"".join(chance.choices(PIECES, k=chance.randrange(1, 9)))
        assert overrides_method(query) == php_finds_method(query), query
        found += php_finds_method(query)
    assert found > 60


def test_more_keys_than_php_reads_are_refused() -> None:
    """What comes after the thousandth is not seen by Coolify; `;` counts as proxies read it."""
    assert canonicalise(b"/api?" + b"a&" * 999) == "/api"
    assert refused(b"/api?" + b"a&" * 1000) == AMBIGUOUS_TARGET
    assert refused(b"/api?" + b"a&" * 500 + b"a;" * 500) == AMBIGUOUS_TARGET


def test_a_target_over_16_kib_is_too_long() -> None:
    """The limit counts path and query together; at the limit it is still read."""
    assert canonicalise(b"/api?" + b"x" * (16 * 1024 - 5)) == "/api"
    assert refused(b"/api?" + b"x" * (16 * 1024 - 4)) == TARGET_TOO_LONG
    assert (TARGET_TOO_LONG.status, TARGET_TOO_LONG.code) == (414, "target_too_long")


def test_each_character_past_ascii_is_accepted_or_refused_by_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Letters, marks, digits, symbols and blanks are names; in either case of the hex digits."""
    seen: set[str] = set()
    monkeypatch.setattr(module, "_TEXT", seen)
    names = ""
    for code in (*range(0x80, 0x3400), *range(0xA000, 0x11000), *range(0x1F000, 0x1FB00), 0xE0041):
        kind = category(character := chr(code))
        if kind[0] in "LMNS" or kind == "Zs":
            names += character
        else:
            escaped = quote(character.encode("utf-8", "surrogatepass"))
            assert isinstance(canonicalise(f"/api/{escaped}x".encode()), Deny), f"U+{code:04X}"
    for start in range(0, len(names), 100):  # what is accepted by itself is accepted with others
        name = names[start : start + 100] + "x"
        for spelling in (quote(name), quote(name).lower()):
            assert canonicalise(f"/api/{spelling}".encode()) == f"/api/{name}"
    assert seen == {*names, *"/apix"}


def test_a_long_name_is_read_past_what_is_remembered() -> None:
    """A name of 255 characters, the most that Coolify stores, in its longest spelling."""
    assert canonicalise(b"/api/" + b"%F0%9F%9A%80" * 255) == "/api/" + "🚀" * 255


def test_what_is_remembered_is_short() -> None:
    """Junk of 16 KiB cannot fill the memory."""
    module._remembered.cache_clear()
    for length, held in ((257, 0), (256, 1), (256, 1), (255, 2)):
        assert canonicalise(b"/" + b"x" * (length - 1)) == "/" + "x" * (length - 1)
        assert module._remembered.cache_info().currsize == held
    assert module._remembered.cache_info().hits == 1


def test_the_reasons_are_what_the_interface_says() -> None:
    """Codes, statuses and Coolify's own words for the 404."""
    assert (AMBIGUOUS_TARGET.status, AMBIGUOUS_TARGET.code) == (400, "ambiguous_target")
    assert (METHOD_OVERRIDE.status, METHOD_OVERRIDE.code) == (400, "method_override")
    assert Reason("route_unknown", Kind.NOT_FOUND, 404, "Not found.") == ROUTE_UNKNOWN


@pytest.mark.parametrize(
    ("target", "reason", "detail"),
    [
        (b"/" + b"x" * 16_384, TARGET_TOO_LONG, "16385 bytes"),
        (b"/api?\x00", AMBIGUOUS_TARGET, "a refused byte in the query"),
        (b"/api?" + b"&" * 5000, AMBIGUOUS_TARGET, f"more than {MOST_KEYS} keys in the query"),
        (b"/api?_method=PUT", METHOD_OVERRIDE, "a query key that PHP reads as _method"),
        (b"/index.php/api", ROUTE_UNKNOWN, "the front controller is not a route"),
        (b"/api/%2F", AMBIGUOUS_TARGET, "a refused byte or escape in the path"),
        (b"/api/%C3", AMBIGUOUS_TARGET, "an escape in the path that is no UTF-8"),
        (b"/api/%E2%80%AE", AMBIGUOUS_TARGET, "a refused character in the path"),
        (b"/api/%2e%2e", AMBIGUOUS_TARGET, "an empty or dot segment"),
    ],
)
def test_the_detail_says_what_was_refused(target: bytes, reason: Reason, detail: str) -> None:
    """In the log, and never in the client's own bytes."""
    assert canonicalise(target) == Deny(reason, detail)
