"""Keys of the management API: made, shown once, listed, revoked; and what they open."""

import asyncio
import http.client
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from authsidecar.admin.keys import create_key, prove_key
from authsidecar.store.keys import Keys
from authsidecar.store.management_keys import EXPIRED_KEPT_MS, ManagementKeys, Scope
from authsidecar.times import UnixMs
from tests.support.cli import Result, invoke
from tests.support.redis import start_redis
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.topologies import Certificates, certificates

WRITTEN = re.compile(r"authsidecar_(\d+)_([A-Za-z0-9]{40})")


@pytest.fixture
def cli(redis_url: str):
    def run(*arguments: object) -> Result:
        return invoke(*arguments, url=redis_url)

    return run


def test_a_key_is_shown_once(cli, redis_url: str) -> None:
    """Only its SHA-256 is stored; the list tells everything but it."""
    made = cli("key", "create", "--name", "deploys", "--scope", "write", "--json").json
    assert list(made) == ["id", "key", "name", "scope", "expires_at"]
    match = WRITTEN.fullmatch(made["key"])
    assert match
    assert int(match[1]) == made["id"]
    listed = cli("key", "list", "--json")
    (item,) = listed.json["items"]
    assert set(item) == {"id", "name", "scope", "created_at", "expires_at"}
    assert (item["name"], item["scope"]) == ("deploys", "write")
    with redis.Redis.from_url(redis_url) as client:
        kept = b"".join(
            value
            for name in client.scan_iter()
            if client.type(name) == b"hash"
            for value in client.hvals(name)
        )
    assert match[2].encode() not in kept
    assert match[2] not in listed.out + cli("key", "list").out


def test_create_says_when_it_expires_and_quiet_only_the_key(cli) -> None:
    """90 days unless said; 0 days and unknown scopes are usage errors."""
    found = cli("key", "create", "--name", "n", "--scope", "read")
    assert "It expires " in found.err
    forever = cli("key", "create", "--name", "n", "--scope", "read", "--expires", "never")
    assert "It never expires" in forever.err
    quiet = cli("key", "create", "--name", "n", "--scope", "read", "--quiet")
    assert WRITTEN.fullmatch(quiet.out.strip())
    assert quiet.err == ""
    assert cli("key", "create", "--name", "n", "--scope", "read", "--expires", "0").code == 2
    assert cli("key", "create", "--name", "n", "--scope", "all").code == 2
    assert cli("key", "create", "--name", " ", "--scope", "read").code == 1
    late = cli("key", "create", "--name", "n", "--scope", "read", "--expires", "3651")
    assert (late.code, "3650" in late.err) == (1, True)


def test_revoking(cli) -> None:
    """It is gone at once; ids are never given again."""
    first = cli("key", "create", "--name", "n", "--scope", "read", "--json").json["id"]
    assert cli("key", "revoke", first, "--json").json == {"id": first, "revoked": True}
    again = cli("key", "revoke", first)
    assert (again.code, again.err) == (
        1,
        f"authsidecar: there is no key {first}; `authsidecar key list` shows them\n",
    )
    assert cli("key", "create", "--name", "n", "--scope", "read", "--json").json["id"] == first + 1


async def test_only_the_whole_right_key_is_proven(redis_client) -> None:
    """A wrong secret, another id, anything around it: nothing. Expired: nothing, but listed."""
    kept = ManagementKeys(redis_client, Keys())
    made = await create_key(kept, name="n", scope=Scope.READ, days=1)
    other = await create_key(kept, name="n", scope=Scope.WRITE, days=None)
    found = await prove_key(kept, made.plain)
    assert found == made.key
    assert (await prove_key(kept, other.plain)).may(Scope.WRITE)
    assert not found.may(Scope.WRITE)
    secret = made.plain.rpartition("_")[2]
    for wrong in (
        f"authsidecar_{other.key.id}_{secret}",
        f"authsidecar_99_{secret}",
        made.plain[:-1] + ("a" if made.plain[-1] != "a" else "b"),
        made.plain + "a",
        f" {made.plain}",
        f"{made.key.id}|{secret}",
        secret,
        "",
        "authsidecar_0_" + secret,
        "\u0661".join(made.plain.split("1")),
    ):
        assert await prove_key(kept, wrong) is None, wrong
    name = Keys().management_key(made.key.id)
    assert await redis_client.pexpiretime(name) == made.key.expires_at + EXPIRED_KEPT_MS
    await redis_client.hset(name, "expires_at", await kept.now() - 1)
    assert await prove_key(kept, made.plain) is None
    assert [key.expired(UnixMs(await kept.now())) for key in await kept.list()] == [True, False]
    await redis_client.delete(name)
    assert [key.id for key in await kept.list()] == [other.key.id]
    assert await redis_client.smembers(Keys().management_keys) == {str(other.key.id).encode()}


@dataclass(frozen=True)
class Closed:
    """A sidecar whose metrics want a key, and which speaks TLS."""

    sidecar: SidecarProcess
    url: str
    made: Certificates

    def get(
        self, path: str, key: str | None = None, *, raw: bytes = b""
    ) -> tuple[int, dict, bytes]:
        context = ssl.create_default_context(cafile=self.made["ca.pem"])
        port = self.sidecar.management_port
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
        try:
            if raw:
                connection.connect()
                connection.sock.sendall(raw)
                return 0, {}, connection.sock.recv(65536)
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    directory = tmp_path_factory.mktemp("closed")
    server = start_redis(directory / "redis")
    made = certificates(directory / "pem")
    sidecar = start_sidecar(
        directory,
        server.url,
        wait=False,
        MANAGEMENT__METRICS_KEY="true",
        MANAGEMENT__TLS_CERT_FILE=made["server.pem"],
        MANAGEMENT__TLS_KEY_FILE=made["server.key"],
    )
    closed = Closed(sidecar, server.url, made)

    async def ready() -> None:
        for _ in range(600):
            try:
                if closed.get("/readyz")[0] == 200:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.05)
        raise AssertionError(sidecar.log)

    asyncio.run(ready())
    yield closed
    sidecar.stop()
    server.stop()


def test_metrics_behind_a_key(closed: Closed) -> None:
    """Open are /healthz and /readyz; a read key is enough, and a revoked one is not."""
    made = invoke("key", "create", "--name", "p", "--scope", "read", "--json", url=closed.url).json
    status, headers, body = closed.get("/metrics")
    assert (status, headers["Content-Type"]) == (401, "application/problem+json")
    assert headers["WWW-Authenticate"] == 'Bearer realm="authsidecar"'
    assert b"management key" in body
    assert closed.get("/healthz")[0] == 200
    status, _, body = closed.get("/metrics", made["key"])
    assert status == 200
    assert b"authsidecar_build_info" in body
    assert invoke("key", "revoke", made["id"], url=closed.url).code == 0
    assert closed.get("/metrics", made["key"])[0] == 401
    assert made["key"] not in closed.sidecar.log


def test_errors_tell_no_versions(closed: Closed) -> None:
    """Neither ours nor aiohttp's nor Python's, whatever is asked."""
    told = [repr(closed.get(path)) for path in ("/none", "/metrics", "/manage/v1/none")]
    told += [repr(closed.get("", raw=raw)) for raw in (b"\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n")]
    for text in told:
        assert "Server" in text
        assert not re.search(r"(?i)python|aiohttp/|\d\.\d\.\d(?!\.\d)", text), text


def test_health_asks_over_tls(closed: Closed) -> None:
    """With the same configuration, and whatever names its certificate has."""
    environ = {k.removeprefix("AUTHSIDECAR_"): v for k, v in closed.sidecar.environ.items()}
    environ.pop("REDIS__URL")
    assert invoke("health", url=closed.url, **environ).code == 0


def test_check_config_warns_of_keys_in_the_clear(tmp_path: Path) -> None:
    """Off loopback and without TLS; and refuses half of a pair."""
    made = certificates(tmp_path)
    clear = invoke("check-config", MANAGEMENT__ADDRESS="0.0.0.0:4191")
    assert (clear.code, "management keys are sent in the clear" in clear.err) == (0, True)
    assert "in the clear" not in invoke("check-config").err
    pair = {
        "MANAGEMENT__TLS_CERT_FILE": made["server.pem"],
        "MANAGEMENT__TLS_KEY_FILE": made["server.key"],
    }
    told = invoke("check-config", MANAGEMENT__ADDRESS="0.0.0.0:4191", **pair)
    assert (told.code, "in the clear" in told.err) == (0, False)
    half = invoke("check-config", MANAGEMENT__TLS_CERT_FILE=made["server.pem"])
    assert (half.code, "management.tls_key_file" in half.err) == (2, True)
