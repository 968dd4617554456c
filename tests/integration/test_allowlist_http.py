"""The allowlist as Coolify's own table may hold it, judged over HTTP."""

import json
from pathlib import Path

from redis.asyncio import Redis

from tests.support.seed import bearer, registry, token, user
from tests.support.sidecar import start_sidecar
from tests.support.wire import ask, subrequest
from tests.support.world import READ

DATA = Path(__file__).parents[1] / "data"

STRICTER = {
    # "A bad entry that arrives from Coolify's own table is skipped with a warning, never widened;
    # a list of only bad entries admits nobody."
    ('"0"', "203.0.113.9"),
    ('"0,0"', "203.0.113.9"),
    ('"0.0.0.0/abc"', "203.0.113.9"),
    ('"10.0.0.0/abc"', "203.0.113.9"),
    ('"10.0.0.0/8abc"', "10.1.1.1"),
    ('"10.0.0.0/8.9"', "10.1.1.1"),
    ('"10.0.0.0/0x8"', "203.0.113.9"),
    ('"10.0.0.0//8"', "203.0.113.9"),
    ('"2001:db8::/"', "2001:dead::1"),
    # Only `0.0.0.0` alone means everyone; "`0.0.0.0/8` means that network" is in the decisions.
    ('"0.0.0.0/32"', "203.0.113.9"),
    ('"0.0.0.0/8"', "2001:db8::5"),
}
"""Coolify admits, we refuse."""

CANONICAL = {
    # "IPv4-mapped IPv6 is unmapped", and addresses are compared as numbers, not as text.
    ('"2001:DB8::1"', "2001:db8::1"),
    ('"::ffff:10.0.0.1"', "10.0.0.1"),
    ('"::ffff:0:0/96"', "10.0.0.1"),
    ('"10.0.0.0/8"', "::ffff:10.1.2.3"),
}
"""Coolify refuses an address that the list names in another spelling; we admit it."""

UNREADABLE = {('"2001:db8::/32"', "not-an-ip")}
"""Coolify denies by the list; to us it is a request that cannot be read."""


def expected(text: str, client: str, coolify: str) -> tuple[int, str | None]:
    if (text, client) in UNREADABLE:
        return 400, "client_address_invalid"
    admitted = coolify == "allow"
    if (text, client) in STRICTER:
        assert admitted
        admitted = False
    if (text, client) in CANONICAL:
        assert not admitted
        admitted = True
    return (200, None) if admitted else (403, "address_not_allowed")


async def test_every_case_of_coolify_is_judged_as_decided(
    redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """All 61 lists and addresses, set in the store, over HTTP; the differences are counted."""
    header, *lines = (DATA / "allowlist-cases.tsv").read_text("utf-8").splitlines()
    assert header.startswith("#allowlist_json\tip\texpected")
    cases = [tuple(line.split("\t")[:3]) for line in lines]
    to = registry(redis_client)
    await user(to, 1, t0="owner")
    await to.put_tokens([token(READ, user=1, team=0)])
    sidecar = start_sidecar(tmp_path, redis_url)
    await to.set_instance(api_enabled=True)
    wanted, seen = {}, {}
    for text, client, coolify in cases:
        await to.set_instance(allowlist=json.loads(text) or "")
        request = subrequest(authorization=bearer(READ), client=client)
        (answer,) = await ask(sidecar.port, request)
        code = None if answer.status == 200 else answer.json["code"]
        seen[text, client] = answer.status, code
        wanted[text, client] = expected(text, client, coolify)
    assert sidecar.stop() == 0
    assert {case: seen[case] for case in seen if seen[case] != wanted[case]} == {}
    assert len(seen) == 61
    assert set(seen) >= STRICTER | CANONICAL | UNREADABLE
