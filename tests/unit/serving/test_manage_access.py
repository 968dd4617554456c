"""Who may use the management listener, and how wrong keys are slowed down."""

import pytest
from aiohttp.test_utils import make_mocked_request
from redis import exceptions

from authsidecar.serving.manage.access import REFUSED_MS, Access, BadKey
from authsidecar.store.management_keys import ManagementKey, Scope
from authsidecar.times import UnixMs

RIGHT, WRITING = "right", "writing"


def made(number: int, scope: Scope) -> ManagementKey:
    return ManagementKey(number, b"", "n", scope, UnixMs(0), None)


class Keys:
    """Keys by what is shown; counts the look-ups."""

    def __init__(self) -> None:
        self.good = {RIGHT: made(1, Scope.READ), WRITING: made(2, Scope.WRITE)}
        self.asked = 0
        self.broken = False

    async def __call__(self, shown: str) -> ManagementKey | None:
        self.asked += 1
        if self.broken:
            raise exceptions.ConnectionError
        return self.good.get(shown)


class Clock:
    def __init__(self) -> None:
        self.now = UnixMs(1_000_000)

    def __call__(self) -> UnixMs:
        return self.now


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(keys: Keys, clock: Clock) -> Access:
    return Access(keys, clock)


def request(shown: str | None, address: str = "192.0.2.1", scheme: str = "Bearer"):
    headers = {} if shown is None else {"Authorization": f"{scheme} {shown}"}
    return make_mocked_request("GET", "/", headers=headers).clone(remote=address)


async def status(
    access: Access,
    shown: str | None,
    address: str = "192.0.2.1",
    scheme: str = "Bearer",
    *,
    needed: Scope = Scope.READ,
) -> int:
    found = await access.key(request(shown, address, scheme), needed)
    return found.status if isinstance(found, BadKey) else 200


async def test_a_key_opens_what_its_scope_allows(access: Access) -> None:
    """read may look, write may do both; a scheme has no case."""
    assert await status(access, RIGHT) == 200
    assert await status(access, RIGHT, needed=Scope.WRITE) == 403
    assert await status(access, WRITING, needed=Scope.WRITE) == 200
    assert await status(access, WRITING, "192.0.2.1", "bEARER") == 200


async def test_without_a_key_nothing_is_looked_up(access: Access, keys: Keys) -> None:
    """No header, another scheme, two headers, a header that is too long."""
    assert await status(access, None) == 401
    assert await status(access, RIGHT, "192.0.2.1", "Basic") == 401
    assert await status(access, "x" * 600) == 401
    assert keys.asked == 0
    refused = await access.key(request(None), Scope.READ)
    assert isinstance(refused, BadKey)
    assert dict(refused.headers) == {"WWW-Authenticate": 'Bearer realm="authsidecar"'}


async def test_wrong_keys_are_slowed_down_by_address(
    access: Access, keys: Keys, clock: Clock
) -> None:
    """One look-up a second for a minute; other addresses are not, and no network of IPv6 is two."""
    assert [await status(access, f"wrong{i}") for i in range(4)] == [401, 401, 429, 429]
    assert keys.asked == 2
    assert await status(access, "wrong", "192.0.2.2") == 401
    clock.now = UnixMs(clock.now + 1000)
    assert [await status(access, "more") for _ in range(2)] == [401, 429]
    clock.now = UnixMs(clock.now + REFUSED_MS)
    assert await status(access, "more") == 401
    answers = [await status(access, "wrong", f"2001:db8::{i}") for i in range(1, 5)]
    assert answers == [401, 401, 429, 429]


async def test_a_key_known_from_an_address_passes_beside_guesses(
    access: Access, keys: Keys
) -> None:
    """A new right key waits; the known one does not, and opens nothing once it is revoked."""
    assert await status(access, RIGHT) == 200
    for number in range(5):
        await status(access, f"wrong{number}")
    assert await status(access, RIGHT) == 200
    assert await status(access, WRITING) == 429
    del keys.good[RIGHT]
    assert await status(access, RIGHT) == 401
    assert await status(access, RIGHT) == 429


async def test_without_redis_nobody_is_let_in(access: Access, keys: Keys) -> None:
    """503, and the address is not slowed down for it."""
    keys.broken = True
    assert [await status(access, RIGHT) for _ in range(3)] == [503, 503, 503]
    keys.broken = False
    assert await status(access, RIGHT) == 200
