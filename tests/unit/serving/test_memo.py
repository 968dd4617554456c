"""What a memo remembers, of what, for how long, and that no bytes get what others should."""

import random
from ipaddress import ip_address
from itertools import permutations

import pytest

from authsidecar.decision.model import AccessRequest, Credential, Proxy, TokenId
from authsidecar.decision.proxies.endpoints import find
from authsidecar.serving.memo import LONGEST, SEEN, Look, Memo
from tests.support.wire import subrequest

ID = "0a1b2c3d-0000-4000-8000-000000000001"
ACCESS = AccessRequest(
    Proxy.NGINX,
    "GET",
    "/api/v1/teams",
    b"/api/v1/teams",
    ip_address("192.0.2.1"),
    Credential(TokenId(1), b"d" * 32),
    request_id=ID,
)


def data(token: int = 1, request_id: str | None = ID, **more) -> bytes:
    headers = [] if request_id is None else [("X-Authz-Request-Id", request_id)]
    return subrequest(authorization=f"Bearer {token}|secret", headers=headers, **more)


def looked(memo: Memo, bytes_: bytes) -> Look:
    look = memo.look(bytes_)
    assert look is not None
    return look


def learn(memo: Memo, bytes_: bytes, times: int = 2) -> None:
    for _ in range(times):
        memo.learn(looked(memo, bytes_), find("/authz/nginx"), ACCESS, "/authz/nginx")


def test_what_came_twice_is_remembered_and_what_came_once_is_not() -> None:
    memo = Memo()
    assert looked(memo, data()).found is None
    learn(memo, data(), times=1)
    assert looked(memo, data()).found is None
    learn(memo, data(), times=1)
    found = looked(memo, data()).found
    assert found is not None
    assert found.access == ACCESS._replace(request_id=None)
    assert found.takes_id


@pytest.mark.parametrize("spelling", ["X-Authz-Request-Id", "x-authz-request-id"])
def test_the_proxys_id_is_cut_out_and_told(spelling: str) -> None:
    memo = Memo()
    first, second = (
        subrequest(authorization="Bearer 1|secret", headers=[(spelling, f"{n:032x}"), ("Z", "1")])
        for n in (1, 2)
    )
    learn(memo, first)
    look = looked(memo, second)
    assert look.found is not None
    assert look.request_id == f"{2:032x}"


def test_requests_with_and_without_what_is_cut_out_are_found_in_any_order() -> None:
    """What was looked at last only says what is tried first."""
    memo = Memo()
    tail = b"traceparent: 00-1-2-01\r\n\r\n"
    kinds = [data(), data(request_id=None), data()[:-2] + tail, data(request_id=None)[:-2] + tail]
    for one in kinds:
        learn(memo, one)
    found = [looked(memo, one).found for one in kinds]
    assert None not in found
    assert len({id(one) for one in found}) == len(kinds)
    for first, second in permutations(range(len(kinds)), 2):
        for number in (first, second, second):
            look = looked(memo, kinds[number])
            assert look.found is found[number]
            assert look.request_id == (None if number in {1, 3} else ID)


def test_what_has_lost_its_id_is_not_what_the_id_was_cut_out_of() -> None:
    """An empty id is none that a proxy makes: the plain way reads it, whatever is tried first."""
    memo = Memo()
    learn(memo, data())
    learn(memo, data(request_id=None))
    for before in (data(), data(request_id=None)):
        looked(memo, before)
        assert memo.look(data(request_id="")) is None


@pytest.mark.parametrize(
    "odd",
    [
        data(request_id=""),
        data(request_id="a" * 65),
        data(request_id="67|secret"),
        data(request_id="a b"),
        data(request_id="\tab"),
        data() + data(),
        data()[:-1],
        data() + b"x",
        data(uri="/" + "a" * LONGEST),
    ],
)
def test_what_is_no_single_head_with_a_plain_id_is_not_looked_at(odd: bytes) -> None:
    assert Memo().look(odd) is None


def test_a_memo_without_entries_remembers_nothing() -> None:
    assert Memo(0).look(data()) is None


def test_what_is_in_use_outlives_what_came_twice_and_never_again() -> None:
    memo = Memo(entries=100)
    learn(memo, data(1))
    for junk in range(2, 1000):
        learn(memo, data(junk))
        assert len(memo) <= 100
        if junk % 40 == 0:
            assert looked(memo, data(1)).found is not None
    assert looked(memo, data(2)).found is None


def test_the_bytes_are_bounded_too() -> None:
    memo = Memo(entries=1000, total_bytes=20_000)
    for number in range(200):
        learn(memo, data(number))
    assert len(memo) <= 20_000 // len(data())


def test_what_was_seen_once_is_forgotten_in_the_end() -> None:
    memo = Memo()
    learn(memo, data(0), times=1)
    for number in range(1, SEEN + 2):
        learn(memo, data(number), times=1)
    learn(memo, data(0), times=1)
    assert looked(memo, data(0)).found is None


def test_a_cleared_memo_knows_nothing() -> None:
    memo = Memo()
    learn(memo, data())
    memo.clear()
    assert looked(memo, data()).found is None
    assert len(memo) == 0


def test_no_part_of_the_bytes_is_kept() -> None:
    memo = Memo()
    learn(memo, data())
    kept = repr([(k, v.access, v.path) for k, v in memo._young.items()]) + repr(memo._seen)
    assert "secret" not in kept


def differ(pairs: int) -> None:
    """Learn requests; change one byte, add one or take one out, and look again."""
    chance = random.Random(15)
    for number in range(pairs // 100):
        memo = Memo()
        proxy = chance.choice(["nginx", "traefik", "caddy"])
        with_id = chance.random() < 0.7
        one = data(number, ID if with_id else None, proxy=proxy)
        start = one.find(ID.encode()) if with_id else len(one)
        learn(memo, one)
        known = looked(memo, one).found
        for _ in range(100):
            at, byte = chance.randrange(len(one)), bytes([chance.randrange(256)])
            kind = chance.randrange(3)
            other = one[:at] + (b"" if kind == 0 else byte) + one[at + (kind != 1) :]
            look = memo.look(other)
            if other == one:
                assert looked(memo, other).found is known
            elif look is not None and look.found is not None:
                assert with_id, (one, other)
                assert start <= at <= start + len(ID), (one, other)
                assert other == one[:start] + str(look.request_id).encode() + one[start + 36 :]


def test_one_byte_makes_another_request() -> None:
    differ(20_000)


@pytest.mark.slow
def test_one_byte_makes_another_request_a_million_times() -> None:
    differ(1_000_000)


@pytest.mark.parametrize("name", ["traceparent", "Traceparent"])
def test_a_traceparent_is_cut_out_and_told(name: str) -> None:
    """A new one in each request is no other request."""
    memo = Memo()
    first, second = (
        data(request_id=f"{n:032x}")[:-2]
        + f"{name}: 00-{n:032x}-{n:016x}-01\r\nZ: 1\r\n\r\n".encode()
        for n in (1, 2)
    )
    learn(memo, first)
    look = looked(memo, second)
    assert look.found is not None
    assert look.traceparent == f"00-{2:032x}-{2:016x}-01".encode()
    assert looked(memo, data()).traceparent is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("traceparent: a\nX-Forwarded-Uri: /a", "traceparent: a\nX-Forwarded-Uri: /b"),
        ("traceparent: " + "a" * 65, "traceparent: " + "b" * 65),
        ("traceparent: 67|secret", "traceparent: 68|secret"),
        ("x-traceparent: a", "x-traceparent: b"),
        ("Z: traceparent: a", "Z: traceparent: b"),
        ("traceparent: a\r\nX-Forwarded-Uri: /a", "traceparent: a\r\nX-Forwarded-Uri: /b"),
        ("traceparent: a\r\ntraceparent: a", "traceparent: a\r\ntraceparent: b"),
    ],
)
def test_nothing_else_is_cut_out(one: str, other: str) -> None:
    """What differs in any other way is another request."""
    memo = Memo()
    first, second = (data()[:-2] + f"{line}\r\n\r\n".encode() for line in (one, other))
    learn(memo, first)
    assert looked(memo, first).found is not None
    assert looked(memo, second).found is None
