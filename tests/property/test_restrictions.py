"""Restrictions against a model that shares no line with them: exactly that, and never wider."""

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from zoneinfo import ZoneInfo

import pytest

from authsidecar.decision.allowlist import parse as parse_allowlist
from authsidecar.decision.checks import first_denial
from authsidecar.decision.model import Role, TeamId, TokenRecord
from authsidecar.decision.policy import Case, Instance, Policy
from authsidecar.decision.restrictions import parse, read, write
from authsidecar.decision.routes import RELEASES, Guard, coolify
from authsidecar.times import UnixMs
from tests.support.cases import record

DECISIONS = 21_000
"""In all releases together."""

ADDRESSES = ("192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8::1", "2001:db8:1::1")
NETWORKS = ("192.0.2.0/25", "192.0.2.200", "198.51.100.0/24", "2001:db8::/48", "0.0.0.0/0")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
PERMISSIONS = ("read", "read:sensitive", "write", "write:sensitive", "deploy", "root")
EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


@dataclass
class Asked:
    """One request of the model's, in plain values."""

    method: str
    template: str
    mcp: bool
    needs: tuple[str, ...]
    client: str
    at: datetime


def model_admits(spec: dict[str, object], asked: Asked) -> bool:
    """The slow and obvious way, from the words of the how-to alone."""

    def includes(held: list[str], needed: str) -> bool:
        return needed in held or "root" in held or (needed == "read" and "read:sensitive" in held)

    routes = spec.get("routes")
    if routes is not None:
        named = [route.split(" ", 1) for route in routes]  # type: ignore[attr-defined]
        if not any(t == asked.template and m in {"*", asked.method} for m, t in named):
            return False
    permissions = spec.get("permissions")
    if permissions is not None:
        if asked.mcp and routes is None:
            return False
        if asked.needs and not any(includes(permissions, one) for one in asked.needs):  # type: ignore[arg-type]
            return False
    networks = spec.get("from")
    if networks is not None:
        client = ip_address(asked.client)
        if not any(client in ip_network(n) for n in networks):  # type: ignore[attr-defined]
            return False
    if "not_before" in spec and asked.at < datetime.fromisoformat(str(spec["not_before"])):
        return False
    if "until" in spec and asked.at > datetime.fromisoformat(str(spec["until"])):
        return False
    hours = spec.get("hours")
    return hours is None or any(shows(one, asked.at) for one in hours)  # type: ignore[attr-defined]


def shows(spec: str, moment: datetime) -> bool:
    """Whether a clock on the wall of that place shows one of these hours."""
    days, times, zone = spec.split(" ")
    wall = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    start, end = times.split("-")
    for back in (0, 1):  # begun today, or yesterday
        day = (wall - timedelta(days=back)).replace(hour=0, minute=0, second=0, microsecond=0)
        if DAYS[day.weekday()] in days.split(","):
            first, last = (
                day + timedelta(hours=int(t[:2]), minutes=int(t[3:])) for t in (start, end)
            )
            if last <= first:
                last += timedelta(days=1)
            if first <= wall < last:
                return True
    return False


def some(dice: random.Random, words: tuple[str, ...], most: int = 3) -> list[str]:
    return sorted(dice.sample(words, dice.randint(1, min(most, len(words)))))


def restriction_of(dice: random.Random, routes: tuple[str, ...], likely: str) -> dict[str, object]:
    """A random restriction that a request has a fair chance to pass."""
    spec: dict[str, object] = {}
    if dice.random() < 0.5:
        spec["permissions"] = some(dice, PERMISSIONS)
    if dice.random() < 0.5:
        named = some(dice, routes)
        method, template = likely.split(" ", 1)
        named += dice.choice([[], [likely], [f"* {template}"], [f"{method} {template}x"]])
        spec["routes"] = named
    if dice.random() < 0.5:
        spec["from"] = some(dice, NETWORKS)
    if dice.random() < 0.3:
        spec["not_before"] = moment(dice).isoformat()
    if dice.random() < 0.3:
        spec["until"] = moment(dice, years=3).isoformat()
    if dice.random() < 0.4:
        times = dice.choice(["00:00-24:00", "08:00-18:00", "22:00-06:30", "01:30-02:30"])
        days = ",".join(day for day in DAYS if dice.random() < 0.7) or "Sun"
        spec["hours"] = [f"{days} {times} {dice.choice(ZONES)}"]
    if "not_before" in spec and "until" in spec and spec["until"] < spec["not_before"]:  # type: ignore[operator]
        del spec["until"]
    if not spec or dice.random() < 0.1:
        spec["uses"] = 5
    return spec


def moment(dice: random.Random, years: int = 1) -> datetime:
    """A moment of 2026 or later, often near a change of clocks."""
    if dice.random() < 0.3:
        change = dice.choice(["2026-03-29T01:00", "2026-10-25T01:00", "2026-03-08T07:00"])
        base = datetime.fromisoformat(f"{change}:00+00:00")
        return base + timedelta(minutes=dice.randint(-180, 180))
    start = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
    return start + timedelta(minutes=dice.randrange(years * 365 * 1440))


@pytest.mark.parametrize("release", RELEASES)
def test_what_is_admitted_is_exactly_what_the_model_says(release: str) -> None:
    """For each route, of each release line, and random restrictions of token, user and team.

    All else is open, so the model decides alone: nothing that it refuses passes, and nothing that
    it admits is refused.
    """
    table = coolify(release)
    guarded = [r for r in table if r.guard in {Guard.ORDINARY, Guard.MCP}]
    names = tuple(f"{r.method} {r.template}" for r in guarded)
    policy = Policy(table)
    instance = Instance(api_enabled=True, allowlist=parse_allowlist(""), mcp_enabled=True)
    dice = random.Random(f"restrictions of {release}")
    admitted = 0
    rounds = -(-DECISIONS // len(RELEASES) // len(guarded))
    for route in guarded * rounds:
        name = f"{route.method} {route.template}"
        holders = dice.sample(["token", "user", "team"], dice.choice([1, 1, 1, 2, 3]))
        specs = {holder: restriction_of(dice, names, name) for holder in holders}
        asked = Asked(
            route.method,
            route.template,
            route.guard is Guard.MCP,
            tuple(route.sufficient),
            dice.choice(ADDRESSES),
            moment(dice),
        )
        restrictions = {holder: read(write(parse(spec)).encode()) for holder, spec in specs.items()}
        held: TokenRecord = record(
            "root", role=Role.OWNER, team=TeamId(0), restrictions=restrictions
        )
        now = UnixMs((asked.at - EPOCH) // timedelta(milliseconds=1))
        client = ip_address(asked.client)
        denial = first_denial(Case(policy, client, route, instance, held, now=now))
        expected = all(model_admits(spec, asked) for spec in specs.values())
        found = "allow" if denial is None else denial.reason.code
        assert found == ("allow" if expected else "token_restricted"), (specs, asked, denial)
        admitted += expected
    assert admitted > DECISIONS // len(RELEASES) // 20, "a test of refusals alone proves little"
