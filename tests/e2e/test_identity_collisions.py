"""Sixty spellings of the identity headers, as PHP would fold them: none reaches the backend."""

from itertools import product

import pytest

from authsidecar.decision.model import Proxy
from authsidecar.demo.backend import php_spelling
from tests.e2e.scenarios import PROXIES
from tests.support import world as at
from tests.support.lab import IDENTITY, Lab

VALUE = "collision"


def spelled(name: str, separators: tuple[str, ...]) -> str:
    """A name with other characters in the place of its hyphens."""
    words = name.split("-")
    return "".join(word + mark for word, mark in zip(words, (*separators, ""), strict=True))


def spellings() -> list[str]:
    """All of one name, the plain ones of every other, and letter cases."""
    found = [spelled("X-Auth-User-Id", marks) for marks in product("-_.", repeat=3)]
    for name in IDENTITY[1:]:
        full = f"X-Auth-{name.title()}"
        hyphens = full.count("-")
        found += [spelled(full, (mark,) * hyphens) for mark in "-_."]
        found.append(spelled(full.upper(), ("_", *"-" * (hyphens - 2), ".")))
    return [
        *found,
        "x-auth-user-id",
        "X-AUTH-USER-ID",
        "x_auth_USER_id",
        "X.aUTH.uSER.iD",
        "X_AUTH-user.ID",
    ]


SPELLINGS = spellings()


def test_there_are_sixty() -> None:
    """All different, and all are identity headers to PHP."""
    assert len(set(SPELLINGS)) == len(SPELLINGS) == 60
    assert {php_spelling(name) for name in SPELLINGS} == {f"x-auth-{name}" for name in IDENTITY}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize(
    ("target", "token"),
    [("/api/v1/teams", at.READ), ("/api/health", None), ("/login", None)],
    ids=["guarded", "public", "unguarded"],
)
async def test_no_spelling_reaches_the_backend(
    lab: Lab, target: str, token: int | None, proxy: Proxy
) -> None:
    """Replaced, stripped or refused with 400; and the real identity stands as it should."""
    reached = 0
    for name in SPELLINGS:
        lab.seen.clear()
        answer = await lab.ask(proxy, "GET", target, f"{name}: {VALUE}", token=token)
        assert answer.status in {200, 400}, name
        assert len(lab.seen) == (answer.status == 200), name
        for seen in lab.seen:
            identity = {php_spelling(n): v for n, v in seen.identity().items()}
            assert len(identity) == len(seen.identity()), name
            assert VALUE not in str(identity), name
            assert len(identity) == (0 if target == "/login" else len(IDENTITY)), name
            reached += 1
    assert reached >= 9  # at least those that differ from ours in nothing but letter case
