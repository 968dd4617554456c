"""Every way to reach one Redis: TCP, TLS, a user with few rights, a unix socket; and its limits."""

import asyncio
import contextlib
import shutil
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis import exceptions
from redis.asyncio import Redis

from authsidecar.config import load
from authsidecar.store import tls as store_tls
from authsidecar.store.connect import Connection, connected
from tests.support import seed
from tests.support.decisions import world
from tests.support.redis import RedisProcess, free_port, start_redis
from tests.support.sidecar import start_sidecar
from tests.support.topologies import Certificates, certificates, client, cluster, tls

pytestmark = pytest.mark.any_python

# What docs/how-to/redis.md tells an operator to give to the sidecar's user.
RIGHTS = (
    *("~authsidecar:*", "resetchannels", "-@all", "+@read", "+@write", "+@scripting"),
    *("+@transaction", "+@connection", "-@dangerous", "+time", "+info", "+wait", "+config|get"),
    *("+script|load", "-keys", "-flushall", "-flushdb"),
)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("pem"))


async def passes(how: Connection, directory: Path, **settings: str) -> str:
    """A sidecar process that reaches it in this way lets a good token pass, and no other.

    Returns:
        What it logged.
    """
    async with connected(how) as store:
        await world(store)
    return await asyncio.to_thread(_passes, how.url, directory, settings)


def _passes(url: str, directory: Path, settings: dict[str, str]) -> str:
    process = start_sidecar(directory, url, **settings)
    try:
        good = process.ask("GET", "/api/v1/teams", authorization=seed.bearer(67))
        bad = process.ask("GET", "/api/v1/teams", authorization=seed.bearer(67, "wrong"))
        assert (good.status, bad.status) == (200, 401)
    finally:
        code = process.stop()
    assert code == 0
    assert "Traceback" not in process.log
    return process.log


def connection(url: str, **options: object) -> Connection:
    return Connection(url, data_dir=None, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_tcp_and_unix_socket(redis_server: RedisProcess, tmp_path: Path, kind: str) -> None:
    """The two ways to a Redis on the same machine."""
    url = redis_server.tcp_url if kind == "tcp" else redis_server.url
    with client(redis_server) as plain:
        plain.flushall()
    await passes(connection(url), tmp_path)


async def test_tls_with_a_private_authority(tmp_path: Path, pem: Certificates) -> None:
    """rediss:// trusts whom tls_ca_file names."""
    async with tls(tmp_path, pem) as port:
        files = {"ssl_ca_certs": pem["ca.pem"]}
        how = connection(f"rediss://127.0.0.1:{port}", tls=tuple(files.items()))
        await passes(how, tmp_path, REDIS__TLS_CA_FILE=pem["ca.pem"])


async def test_tls_with_a_client_certificate(tmp_path: Path, pem: Certificates) -> None:
    """A server that asks for a certificate gets the one of tls_cert_file; none is refused."""
    async with tls(tmp_path, pem, ask=True) as port:
        url = f"rediss://127.0.0.1:{port}"
        files = {"ssl_ca_certs": pem["ca.pem"]}
        with pytest.raises((exceptions.ConnectionError, OSError)):
            async with connected(connection(url, tls=tuple(files.items()))) as store:
                await store.ping()
        files |= {"ssl_certfile": pem["client.pem"], "ssl_keyfile": pem["client.key"]}
        async with connected(connection(url, tls=tuple(files.items()))) as store:
            assert await store.ping()


async def test_tls_of_an_unknown_authority_or_another_host_is_refused(
    tmp_path: Path, pem: Certificates
) -> None:
    """Whoever stands between cannot pass for Redis."""
    async with tls(tmp_path, pem) as port:
        for url, files in (
            (f"rediss://127.0.0.1:{port}", ()),
            (f"rediss://localhost:{port}", (("ssl_ca_certs", pem["ca.pem"]),)),
        ):
            with pytest.raises((exceptions.ConnectionError, OSError), match="certificate"):
                async with connected(connection(url, tls=files)) as store:
                    await store.ping()


@contextlib.asynccontextmanager
async def with_a_user(directory: Path, *rights: str) -> AsyncIterator[RedisProcess]:
    """A Redis whose default user is off; `sidecar` has these rights."""
    server = start_redis(directory / "redis", port=0)
    try:
        async with Redis.from_url(server.url) as admin:
            await admin.execute_command("ACL", "SETUSER", "sidecar", "on", ">p@ss:/word", *rights)
            await admin.execute_command("ACL", "SETUSER", "default", "off")
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize("where", ["settings", "url"])
async def test_a_user_with_the_documented_rights_is_enough(tmp_path: Path, where: str) -> None:
    """The rights of the how-to do for the sidecar and for its commands; the password may be odd."""
    async with with_a_user(tmp_path, *RIGHTS) as server:
        if where == "url":
            url = f"redis://sidecar:p%40ss%3A%2Fword@127.0.0.1:{server.port}"
            await passes(connection(url), tmp_path)
        else:
            how = connection(server.tcp_url, username="sidecar", password="p@ss:/word")
            login = {"REDIS__USERNAME": "sidecar", "REDIS__PASSWORD": "p@ss:/word"}
            await passes(how, tmp_path, **login)


async def test_a_user_without_config_get_is_warned_of_and_works(tmp_path: Path) -> None:
    """Managed servers forbid CONFIG: the eviction policy is then the operator's to know."""
    async with with_a_user(tmp_path, *RIGHTS, "-config|get") as server:
        url = f"redis://sidecar:p%40ss%3A%2Fword@127.0.0.1:{server.port}"
        assert "eviction_policy_unknown" in await passes(connection(url), tmp_path)


async def test_a_wrong_password_is_one_clear_line_without_it(tmp_path: Path) -> None:
    """The start fails, says which setting, and shows no secret."""
    async with with_a_user(tmp_path, *RIGHTS) as server:
        url = f"redis://sidecar:planted-secret@127.0.0.1:{server.port}"
        with pytest.raises(RuntimeError, match=r"redis\.password") as told:
            start_sidecar(tmp_path, url, REDIS__WAIT_AT_START_SECONDS="0")
    assert "planted" not in str(told.value)
    assert "Traceback" not in str(told.value)


# What must not be evicted


def evicting(server: RedisProcess, policy: str, maxmemory: str = "100mb") -> None:
    with client(server) as node:
        node.config_set("maxmemory", maxmemory)
        node.config_set("maxmemory-policy", policy)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_policy_that_could_drop_tokens_refuses_the_start(tmp_path: Path, policy: str) -> None:
    """Tokens that expire are volatile, too."""
    server = start_redis(tmp_path / "redis")
    evicting(server, policy)
    with pytest.raises(RuntimeError, match=f"maxmemory-policy is {policy}") as told:
        start_sidecar(tmp_path, server.url)
    assert "noeviction" in str(told.value)
    server.stop()


def test_the_same_policy_is_a_warning_where_the_operator_says_so(tmp_path: Path) -> None:
    """redis.eviction_policy: warn."""
    server = start_redis(tmp_path / "redis")
    evicting(server, "allkeys-lru")
    process = start_sidecar(tmp_path, server.url, REDIS__EVICTION_POLICY="warn")
    process.stop()
    server.stop()
    assert '"eviction_policy"' in process.log


@pytest.mark.parametrize(("policy", "maxmemory"), [("noeviction", "100mb"), ("allkeys-lru", "0")])
def test_a_policy_that_drops_nothing_is_fine(tmp_path: Path, policy: str, maxmemory: str) -> None:
    """noeviction, and any policy of a server without a maximum."""
    server = start_redis(tmp_path / "redis")
    evicting(server, policy, maxmemory)
    process = start_sidecar(tmp_path, server.url)
    process.stop()
    server.stop()
    assert "eviction" not in process.log


def test_one_node_of_a_cluster_that_could_drop_tokens_refuses_the_start(tmp_path: Path) -> None:
    """Every primary is asked."""
    with cluster(tmp_path / "cluster", replicas=False) as servers:
        evicting(servers.servers[2], "allkeys-lfu")
        with pytest.raises(RuntimeError, match="maxmemory-policy is allkeys-lfu"):
            start_sidecar(tmp_path, servers.url)
        evicting(servers.servers[2], "noeviction")
        process = start_sidecar(tmp_path, servers.url)
        assert process.stop() == 0
        assert "Traceback" not in process.log


def test_a_cluster_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    """So are sentinels that nobody runs; and no login shows."""
    port = free_port()
    for url in (
        f"redis+cluster://me:planted@127.0.0.1:{port}",
        f"redis+sentinel://me:planted@127.0.0.1:{port}/auth",
        f"rediss+cluster://me:planted@127.0.0.1:{port}",
    ):
        with pytest.raises(RuntimeError, match="does not answer") as told:
            start_sidecar(tmp_path, url, REDIS__WAIT_AT_START_SECONDS="0")
        assert "planted" not in str(told.value)
        assert "Traceback" not in str(told.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h", "rediss://h:1/2", "unix:///s", "redis+sentinel://a:1,b/name/3", "embedded",
        "rediss+sentinel://u:p%40@[::1]:2/name", "redis+cluster://a,b:2", "rediss+cluster://h",
    ],
)  # fmt: skip
async def test_every_url_that_the_configuration_accepts_makes_a_client(url: str) -> None:
    """The two grammars are one."""
    settings = load(None, {"AUTHSIDECAR_REDIS__URL": url})
    if url != "embedded":  # which would start a server: test_embedded.py
        async with connected(connection(settings.redis.url)) as made:
            assert hasattr(made, "execute_command")


async def test_a_user_with_the_documented_rights_is_enough_for_a_cluster(tmp_path: Path) -> None:
    """It also asks who serves which slots, and what the commands are."""
    with cluster(tmp_path / "cluster", replicas=False) as servers:
        rights = (*RIGHTS, "+cluster|slots", "+command", "+asking")
        for server in servers.servers:
            with client(server) as node:
                node.execute_command("ACL", "SETUSER", "sidecar", "on", ">p@ss:/word", *rights)
        login = {"REDIS__USERNAME": "sidecar", "REDIS__PASSWORD": "p@ss:/word"}
        how = connection(servers.url, username="sidecar", password="p@ss:/word")
        await passes(how, tmp_path, **login)
        async with connected(how) as made:
            await world(made)
            assert await made.wait(0, 1000) == 0


async def test_tls_files_are_read_once_and_never_on_the_event_loop(
    tmp_path: Path, pem: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred connections share a context; another one is made after one failed."""
    made: list[bool] = []
    make = ssl.create_default_context

    def counted(*args, **kwargs) -> ssl.SSLContext:
        made.append(threading.current_thread() is threading.main_thread())
        return make(*args, **kwargs)

    monkeypatch.setattr(store_tls, "READ_AGAIN_S", 0.0)
    authority = tmp_path / "ca.pem"
    shutil.copy(certificates(tmp_path / "other")["ca.pem"], authority)
    async with tls(tmp_path, pem) as port:
        monkeypatch.setattr(ssl, "create_default_context", counted)
        files = {"ssl_ca_certs": str(authority)}
        how = connection(f"rediss://127.0.0.1:{port}", tls=tuple(files.items()))
        async with connected(how) as store:
            with pytest.raises(exceptions.ConnectionError):
                await store.ping()
            shutil.copy(pem["ca.pem"], authority)
            await asyncio.gather(*(store.ping() for _ in range(20)))
    assert made == [False, False]
