"""A Redis password that is rotated: in Redis and in its file, with connections cut, no restart."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import exceptions
from redis.asyncio import Redis

from authsidecar.config import load
from authsidecar.run.redis import connection
from authsidecar.store.connect import connected
from authsidecar.store.login import READ_AGAIN_S
from authsidecar.store.trips import kind_of
from tests.support.redis import RedisProcess, start_redis
from tests.support.seed import bearer, registry, token, user
from tests.support.sidecar import SidecarProcess, get, start_sidecar
from tests.support.topologies import client, cluster, sentinels
from tests.support.waiting import eventually, until

FIRST, SECOND = "first/of two", "second:of@two"
QUOTED = {FIRST: "first%2Fof%20two", SECOND: "second%3Aof%40two"}


@dataclass(frozen=True)
class Guarded:
    """Servers that know the user `sidecar`, and the sentinels that know `watcher`."""

    url: str
    servers: Sequence[RedisProcess]
    sentinels: Sequence[RedisProcess] = ()

    def rotate(self, password: str, *, of_sentinels: bool = False) -> None:
        """Change the password, and cut every connection that logged in with the old one."""
        name = "watcher" if of_sentinels else "sidecar"
        for server in self.sentinels if of_sentinels else self.servers:
            with client(server) as node:
                words = ("on", "resetpass", f">{password}", "~*", "&*", "+@all")
                node.execute_command("ACL SETUSER", name, *words)
                node.execute_command("CLIENT KILL", "USER", name)


@pytest.fixture(scope="module", params=["alone", "sentinel", "cluster"])
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("guarded")
    if request.param == "alone":
        server = start_redis(directory, port=0)
        yield Guarded(server.tcp_url, [server])
        server.stop()
    elif request.param == "sentinel":
        with sentinels(directory) as made:
            yield Guarded(made.url, made.servers, made.sentinels)
    else:
        with cluster(directory, replicas=False) as made:
            yield Guarded(made.url, made.servers)


@contextlib.asynccontextmanager
async def opened(**environ: object) -> AsyncIterator[Any]:
    """A client as every command and `serve` have it."""
    settings = load(None, {f"AUTHSIDECAR_{name}": str(text) for name, text in environ.items()})
    async with connected(connection(settings)) as made:
        yield made


def secret(file: Path, text: str) -> Path:
    """A file as secret stores write it: whole, in the place of the old one."""
    new = file.with_suffix(".new")
    new.write_text(text + "\n")
    new.replace(file)
    return file


async def kind(asked: Any) -> str | None:
    try:
        await asked.get("key")
    except (exceptions.RedisError, OSError) as error:
        return kind_of(error)
    return None


def works(made: Any) -> Callable[[], Any]:
    async def one() -> bool:
        return await kind(made) is None

    return one


def refused(made: Any) -> Callable[[], Any]:
    async def one() -> bool:
        return await kind(made) == "auth"

    return one


async def test_the_file_is_read_again_when_a_login_is_refused(
    guarded: Guarded, tmp_path: Path
) -> None:
    """Until it is rewritten, the kind is `auth` and no other; then the next login is good."""
    guarded.rotate(FIRST)
    file = secret(tmp_path / "password", FIRST)
    login = {"REDIS__USERNAME": "sidecar", "REDIS__PASSWORD_FILE": file}
    async with opened(REDIS__URL=guarded.url, **login) as made:
        assert await kind(made) is None
        guarded.rotate(SECOND)
        await eventually(refused(made), "a refused login")
        secret(file, SECOND)
        await eventually(works(made), "the new password", patience_s=5)
        guarded.rotate(FIRST)
        secret(file, FIRST)
        await eventually(works(made), "the old password again", patience_s=5)


async def test_a_first_look_that_is_refused_says_so(guarded: Guarded, tmp_path: Path) -> None:
    """Behind sentinels and on a cluster too, a process that has seen nothing yet tells `auth`."""
    guarded.rotate(FIRST)
    file = secret(tmp_path / "password", SECOND)
    login = {"REDIS__USERNAME": "sidecar", "REDIS__PASSWORD_FILE": file}
    async with opened(REDIS__URL=guarded.url, **login) as made:
        assert [await kind(made) for _ in range(3)] == ["auth"] * 3
        secret(file, FIRST)
        await eventually(works(made), "the password", patience_s=5)


async def test_a_login_in_a_url_is_read_again_too(guarded: Guarded, tmp_path: Path) -> None:
    """The file of the url holds a password as well: the servers', or the sentinels'."""
    watched = bool(guarded.sentinels)
    guarded.rotate(FIRST)
    guarded.rotate(FIRST, of_sentinels=True)
    name = "watcher" if watched else "sidecar"
    scheme, _, rest = guarded.url.partition("://")
    file = tmp_path / "url"
    urls = {p: f"{scheme}://{name}:{QUOTED[p]}@{rest}" for p in (FIRST, SECOND)}
    secret(file, urls[FIRST])
    own = {"REDIS__USERNAME": "sidecar", "REDIS__PASSWORD": FIRST} if watched else {}
    async with opened(REDIS__URL_FILE=file, **own) as made:
        assert await kind(made) is None
        guarded.rotate(SECOND, of_sentinels=watched)
        if watched:
            guarded.rotate(FIRST)  # cuts the connections to the servers: sentinels are asked again
        await eventually(refused(made), "a refused login")
        secret(file, urls[SECOND])
        await eventually(works(made), "the new password", patience_s=5)


async def test_a_file_that_can_not_be_used_changes_nothing(tmp_path: Path) -> None:
    """Gone, no text or empty: it is told as `auth`, and looked at again."""
    server = start_redis(tmp_path / "redis", port=0)
    alone = Guarded(server.tcp_url, [server])
    alone.rotate(FIRST)
    file = secret(tmp_path / "password", FIRST)
    login = {"REDIS__USERNAME": "sidecar", "REDIS__PASSWORD_FILE": file}
    async with opened(REDIS__URL=alone.url, **login) as made:
        assert await kind(made) is None
        alone.rotate(SECOND)
        await eventually(refused(made), "a refused login")
        for spoil in (file.unlink, lambda: file.write_bytes(b"\xff"), lambda: file.write_text("")):
            spoil()
            for _ in range(3):
                assert await kind(made) == "auth"
        alone.rotate(FIRST)
        secret(file, FIRST)
        await eventually(works(made), "the password of before", patience_s=5)
    server.stop()


# The serving process


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[SidecarProcess, Guarded, Path]]:
    server = start_redis(tmp_path / "redis", port=0)
    alone = Guarded(server.tcp_url, [server])
    alone.rotate(FIRST)
    async with Redis.from_url(server.url) as there:
        state = registry(there)
        await state.set_instance(api_enabled=True)
        await user(state, 1, t0="owner")
        await state.put_tokens([token(1, user=1, team=0)])
    file = secret(tmp_path / "password", FIRST)
    login = {"REDIS__USERNAME": "sidecar", "REDIS__PASSWORD_FILE": str(file)}
    more = {"LIMITS__USER": "100000"}
    process = start_sidecar(tmp_path, server.tcp_url, "--workers", "2", **login, **more)
    yield process, alone, file
    assert process.stop() == 0
    server.stop()


def errors(process: SidecarProcess) -> set[str]:
    """The kinds of errors that were counted."""
    text = get(process.management_port, "/metrics", {}).body.decode()
    return {
        sample.labels["kind"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "authsidecar_store_errors_total" and sample.value
    }


def test_workers_go_on_with_the_new_password(
    served: tuple[SidecarProcess, Guarded, Path],
) -> None:
    """503 while file and Redis differ, named `auth`; then all workers answer again, none restarted.

    Whoever rewrites the file first sees no request refused for it.
    """
    process, alone, file = served

    def status() -> int:
        return process.ask("GET", "/api/v1/teams", authorization=bearer(1)).status

    def both_have_answered() -> bool:
        assert [status() for _ in range(20)] == [200] * 20
        lines = [line for line in process.log.splitlines() if '"event": "decision"' in line]
        return len({line.split('"decision_id": "')[1][:18] for line in lines}) == 2

    until(both_have_answered, "an answer of each: one that starts ends where its login is refused")
    alone.rotate(SECOND)
    until(lambda: status() == 503, "a refused login")
    until(lambda: b"auth" in get(process.management_port, "/readyz", {}).body, "the cause")
    until(lambda: "auth" in errors(process), "its count")
    secret(file, SECOND)
    for _ in range(3):  # each of them may be the one that has not asked since
        until(lambda: [status() for _ in range(30)] == [200] * 30, "all workers", patience_s=10)
    until(lambda: get(process.management_port, "/readyz", {}).status == 200, "ready again")

    time.sleep(2 * READ_AGAIN_S)
    secret(file, FIRST)
    alone.rotate(FIRST)
    assert [status() for _ in range(60)] == [200] * 60
    assert not any(word in process.log for word in (*QUOTED, *QUOTED.values()))
