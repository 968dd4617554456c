"""What a token is advised to be narrowed to, by cases."""

import random

import pytest

from authsidecar.admin.advice import DAYS, TokenAdvice, advise, named_keys
from authsidecar.cli.advice import advise as command
from authsidecar.decision.model import Permission, Restriction
from authsidecar.decision.restrictions import parse
from authsidecar.decision.routes import coolify
from authsidecar.store.usage import DAY_MS, Days, Usage
from authsidecar.times import UnixMs
from tests.property.test_restricted_resources import grown
from tests.support import seed

TODAY = 20_000
NOW = UnixMs(TODAY * DAY_MS + 5)
SINCE = UnixMs((TODAY - 30) * DAY_MS)


LATELY = Days(TODAY - 20, TODAY, 9)


def advised(held: str, *texts: str, old: Restriction | None = None) -> TokenAdvice:
    """What a token is told that has used these texts; APP is an application that is known."""
    world = grown(random.Random(1))
    app = world.of("application")[0]
    mine = [text.replace("APP", app.uuid) for text in texts]
    found = Usage(
        LATELY,
        {one: LATELY for one in mine if one[0] not in "=?"},
        {one: LATELY for one in mine if one[0] == "="},
        {one: LATELY for one in mine if one[0] == "?"},
    )
    token = seed.token(67, user=7, team=3, permissions=tuple(held.split()))
    places = {key: world.places.get(key) for key in named_keys(found)}
    return advise(coolify("4.3"), token, old, found, places, known_since=SINCE, now=NOW, days=90)


DEPLOY = "POST /api/v1/deploy"


def test_what_is_not_needed_is_named_and_left_out() -> None:
    """Permissions that no route asked for; root is narrowed to what was asked for."""
    advice = advised("read deploy write", DEPLOY)
    assert advice.unused == (Permission.READ, Permission.WRITE)
    assert advice.command == (
        "authsidecar token restrict 67 --permission deploy --route 'POST /api/v1/deploy'"
    )
    assert advice.since == TODAY - 30
    root = advised("root", "GET /api/v1/teams")
    assert root.unused == (Permission.ROOT,)
    assert root.proposal is not None
    assert root.proposal.permissions == {Permission.READ}
    assert advised("read read:sensitive", "GET /api/v1/teams").unused == (
        Permission.READ_SENSITIVE,
    )
    assert advised("read:sensitive", "GET /api/v1/teams").unused == ()


def test_mcp_may_use_any_permission() -> None:
    """So none is called unused, and none is left out."""
    advice = advised("read deploy", "POST /mcp", DEPLOY)
    assert advice.unused == ()
    assert advice.proposal is not None
    assert advice.proposal.permissions is None


@pytest.mark.parametrize("why", ["?body", "?query", "?names", "?unknown"])
def test_what_could_not_be_told_is_not_narrowed(why: str) -> None:
    """The routes are, the resources are not, and it says so."""
    advice = advised("deploy", DEPLOY, "=deploy/APP", why)
    assert advice.proposal is not None
    assert not advice.proposal.to_resources
    assert len(advice.notes) == 1
    narrower = advised("deploy", DEPLOY, "=deploy/APP").proposal
    assert narrower is not None
    assert narrower.to_resources


def test_more_routes_than_are_kept_give_no_proposal() -> None:
    """What is not known can't be called unused either."""
    advice = advised("read deploy", DEPLOY, "?routes")
    assert (advice.proposal, advice.command, advice.unused) == (None, None, ())


def test_only_what_narrows_is_proposed() -> None:
    """What is there stays; a token that is as narrow as its use gets none."""
    rate = parse({"rate": "10/1h", "note": "it's CI"})
    advice = advised("deploy", DEPLOY, old=rate)
    assert advice.command is not None
    assert advice.command.endswith("--rate 10/3600s --note 'it'\"'\"'s CI'")
    same = advised("deploy", DEPLOY, old=advice.proposal)
    assert same.proposal is None
    assert advised("deploy", DEPLOY, old=parse({"routes": ["GET /api/v1/teams"]})).proposal is None


def test_days_without_use_are_counted() -> None:
    """Since the last use; of a token that was never used, all that are known."""
    token = seed.token(67, user=7, team=3)
    table = coolify("4.3")
    for found, expected, known in (
        (Usage(), 31, False),
        (Usage(Days(TODAY - 40, TODAY - 12, 4)), 12, True),
        (Usage(Days(TODAY - 60, TODAY - 50, 4)), 31, False),
    ):
        advice = advise(table, token, None, found, {}, known_since=SINCE, now=NOW, days=90)
        assert (advice.days_without_use, advice.used is not None) == (expected, known)
        assert advice.proposal is None


def test_the_command_looks_at_as_many_days_as_the_console() -> None:
    """Its default stands by itself, since a command's help must not wait for imports."""
    (days,) = [one.default for one in command.params if one.name == "days"]
    assert days == DAYS
