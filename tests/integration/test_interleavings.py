"""Changes by one process while two others answer: no answer is of a state that was over.

Every change has a number. A request may be judged by any state that was current between its
first and its last moment: from the last change that had returned when it began, to the last that
had begun when it ended. Any other answer is a defect, and is shown with its number.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis.asyncio import Redis

from authsidecar.decision.model import Role, TeamId, TokenId, UserId
from authsidecar.store.cluster import Cluster
from authsidecar.store.connect import Connection, connected
from authsidecar.store.keys import Keys
from authsidecar.store.registry import Registry
from tests.support import seed
from tests.support.redis import start_redis
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.topologies import cluster
from tests.support.wire import Wire, subrequest

pytestmark = pytest.mark.any_python

TEAM = TeamId(3)
OWNERS = {1: UserId(7), 2: UserId(8), 3: UserId(7), 4: UserId(8)}
PERMISSIONS = (("read",), ("read", "write"), ("deploy",), ("root",), ("read:sensitive", "read"))
CLIENT = "192.0.2.1"


@dataclass
class State:
    """What is in Redis, in the words of the test."""

    api: bool = False
    open_to_client: bool = True
    roles: dict[UserId, Role] = field(default_factory=dict)
    tokens: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def code(self, token: int) -> str:
        """What decisions.md says of GET /api/v1/teams with this token: checks 2 to 8."""
        if token not in self.tokens:
            return "token_unknown"
        held = set(self.tokens[token])
        role = self.roles.get(OWNERS[token])
        if role is None:
            return "not_team_member"
        if held & {"root", "write", "deploy", "read:sensitive"} and role is Role.MEMBER:
            return "team_role_required"
        if not self.api:
            return "api_disabled"
        if not self.open_to_client:
            return "address_not_allowed"
        return "allow" if held & {"read", "root"} else "permission_missing"


Step = tuple[Callable[[], Awaitable[object]], State]
"""A change, and the state after it."""


class Changes:
    """Random changes, each with what it makes of the state."""

    def __init__(self, registry: Registry, client: Redis, chance: random.Random) -> None:
        self._registry = registry
        self._client = client
        self._chance = chance

    def next(self, state: State) -> list[Step]:
        kinds = [self._token] * 4 + [self._role] * 3 + [self._member] * 2
        # On a cluster the switches take a second, and FLUSHALL is not one moment.
        if not isinstance(self._client, Cluster):
            kinds += [self._instance] * 2
            if self._chance.random() < 0.02:
                return self._flush(state)
        return self._chance.choice(kinds)(deepcopy(state))

    def _token(self, state: State) -> list[Step]:
        """A revocation, a new token, or other permissions."""
        number = self._chance.choice(list(OWNERS))
        if number in state.tokens and self._chance.random() < 0.4:
            del state.tokens[number]
            return [(lambda: self._registry.remove_token(TokenId(number)), state)]
        state.tokens[number] = self._chance.choice(PERMISSIONS)
        return [(self._put(state, number), state)]

    def _role(self, state: State) -> list[Step]:
        user, role = self._chance.choice([*OWNERS.values()]), self._chance.choice(list(Role))
        state.roles[user] = role
        return [(lambda: self._registry.set_member(TEAM, user, role), state)]

    def _member(self, state: State) -> list[Step]:
        """A removal, with the tokens that the membership carried."""
        user = self._chance.choice([*OWNERS.values()])
        if state.roles.pop(user, None) is not None:
            state.tokens = {t: held for t, held in state.tokens.items() if OWNERS[t] != user}
        return [(lambda: self._registry.remove_member(TEAM, user), state)]

    def _instance(self, state: State) -> list[Step]:
        if self._chance.random() < 0.3:
            state.api = on = not state.api
            return [(lambda: self._registry.set_instance(api_enabled=on), state)]
        state.open_to_client = not state.open_to_client
        text = "" if state.open_to_client else "198.51.100.7"
        return [(lambda: self._registry.set_instance(allowlist=text), state)]

    def _flush(self, before: State) -> list[Step]:
        """FLUSHALL, and then everything again, piece by piece, as from a backup."""
        state = State()
        steps: list[Step] = [(self._client.flushall, deepcopy(state))]
        steps += [(lambda u=user: self._user(u), deepcopy(state)) for user in (7, 8)]
        for user, role in before.roles.items():
            state.roles[user] = role
            steps.append(
                (lambda u=user, r=role: self._registry.set_member(TEAM, u, r), deepcopy(state))
            )
        for number, held in before.tokens.items():
            state.tokens[number] = held
            steps.append((self._put(state, number), deepcopy(state)))
        state.api, state.open_to_client = before.api, before.open_to_client
        text = "" if before.open_to_client else "198.51.100.7"
        on = before.api
        steps.append(
            (lambda: self._registry.set_instance(api_enabled=on, allowlist=text), deepcopy(state))
        )
        return steps

    async def _user(self, number: int) -> None:
        await self._registry.add_user(f"user {number}", "u@example.test", UserId(number))
        await self._registry.add_team("team 3", TEAM)

    def _put(self, state: State, number: int) -> Callable[[], Awaitable[object]]:
        made = seed.token(number, user=OWNERS[number], team=TEAM, permissions=state.tokens[number])
        return lambda: self._registry.put_tokens([made])


@dataclass
class History:
    """Every state by its number, and how far the changes are.

    Attributes:
        states: by number.
        by_steps: a member's tokens and membership are in several slots: for a moment a token may
            be there and its membership not. That refuses, as the states before or after may.
    """

    states: list[State]
    by_steps: bool = False
    begun: int = 0
    returned: int = 0
    wrong: list[str] = field(default_factory=list)
    answers: int = 0
    codes: set[str] = field(default_factory=set)

    async def ask(self, wire: Wire, token: int, name: str) -> None:
        """One request, held against every state that it may have been judged by."""
        first = self.returned
        answer = await wire.ask(subrequest(authorization=seed.bearer(token), client=CLIENT))
        code = "allow" if answer.status == 200 else answer.json["code"]
        possible = {self.states[i].code(token) for i in range(first, self.begun + 1)}
        if self.by_steps and len(possible) > 1:
            possible.add("not_team_member")
        self.answers += 1
        self.codes.add(code)
        if code not in possible:
            self.wrong.append(f"{name}: token {token} is {code}, not {possible} (change {first})")


@pytest.fixture(params=["alone", "cluster"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """One Redis, and a cluster of three."""
    with ExitStack() as stack:
        if request.param == "cluster":
            yield stack.enter_context(cluster(tmp_path / "cluster", replicas=False)).url
        else:
            server = start_redis(tmp_path / "redis")
            stack.callback(server.stop)
            yield server.url


@pytest.fixture
def processes(url: str, tmp_path: Path) -> Iterator[list[SidecarProcess]]:
    """Two, with limits that nobody meets."""
    more = {"LIMITS__USER": "100000", "LIMITS__FAILED": "100000", "LOG__DECISIONS": "none"}
    with ExitStack() as stack:
        made = []
        for _ in range(2):
            made.append(start_sidecar(tmp_path / "sidecar", url, **more))
            stack.callback(made[-1].stop)
        yield made


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_39_no_request_is_judged_by_a_state_that_was_over_when_it_began(
    url: str, processes: list[SidecarProcess], tell: Callable[[str], None]
) -> None:
    """1,000 random changes, FLUSHALL and reload among them, while two processes answer."""
    chance = random.Random(20261124)
    async with connected(Connection(url, data_dir=None)) as client:  # type: ignore[arg-type]
        registry = Registry(client, Keys())
        for user in (7, 8):
            await seed.user(registry, user, t3="owner")
        await registry.set_instance(api_enabled=True)
        await asyncio.sleep(1)  # for which a cluster may go on with the switch that it was
        owners = {UserId(7): Role.OWNER, UserId(8): Role.OWNER}
        history = History([State(api=True, roles=owners)], by_steps=isinstance(client, Cluster))
        stop = asyncio.Event()

        async def hammer(process: SidecarProcess) -> None:
            async with Wire(process.port) as wire:
                while not stop.is_set():
                    await history.ask(wire, chance.choice(list(OWNERS)), f"hammer {process.port}")

        hammers = [asyncio.ensure_future(hammer(p)) for p in processes for _ in range(3)]
        changes = Changes(registry, client, chance)
        async with Wire(processes[0].port) as one, Wire(processes[1].port) as two:
            while history.returned < 1000:
                for change, after in changes.next(history.states[-1]):
                    history.states.append(after)
                    history.begun += 1
                    await change()
                    history.returned += 1
                    token = chance.choice(list(OWNERS))
                    await asyncio.gather(
                        *(history.ask(wire, token, "the very next") for wire in (one, two))
                    )
        stop.set()
        await asyncio.gather(*hammers)
    wrong = len(history.wrong)
    tell(f"{history.returned} changes, {history.answers} answers, {wrong} of an old state")
    assert history.wrong == []
    assert history.answers > 5 * history.returned
    seen = {"allow", "token_unknown", "not_team_member", "team_role_required", "permission_missing"}
    everywhere = set() if isinstance(client, Cluster) else {"api_disabled", "address_not_allowed"}
    assert history.codes == seen | everywhere
