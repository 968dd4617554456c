"""Redis as it is run in earnest: clusters, sentinels and TLS, of real servers on loopback."""

import contextlib
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import redis

from authsidecar.store.cluster import slot_of
from tests.support.redis import RedisProcess, free_port, start_redis
from tests.support.relay import relay

NODE_TIMEOUT_MS = 1000
"""After how long without an answer a cluster, or its sentinels, take a server for dead."""

SLOTS = 16384
PATIENCE_S = 30.0

# Nobody waits for another replica, or for a link, longer than a test has time.
REPLICATION = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


def until(true: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return once it is true."""
    late = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if true():
                return
        assert time.monotonic() < late, f"not in time: {what}"
        time.sleep(0.02)


def until_in_step(primary: RedisProcess, replica: RedisProcess) -> None:
    """Return once the replica has all that the primary has been told so far."""
    with client(primary) as first, client(replica) as second:
        told = first.info("replication")["master_repl_offset"]
        until(
            lambda: second.info("replication")["slave_repl_offset"] >= told,
            "the replica has all",
        )


def client(server: RedisProcess) -> redis.Redis:
    """A plain client of one server, that answers in text."""
    return redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=5)


@dataclass(frozen=True)
class RedisCluster:
    """Primaries, and behind each one replica: `servers[i]`, `servers[i + primaries]`."""

    servers: tuple[RedisProcess, ...]
    primaries: int = 3

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers[: self.primaries])
        return f"redis+cluster://{hosts}"

    def primary_of(self, key: str) -> int:
        """Which of the first primaries has this key."""
        return slot_of(key) * self.primaries // SLOTS

    def replica_of(self, primary: int) -> RedisProcess:
        return self.servers[primary + self.primaries]

    def until_promoted(self, primary: int) -> None:
        """Return once the replica of a dead primary has taken over."""
        with client(self.replica_of(primary)) as replica:
            until(lambda: replica.role()[0] == "master", "the replica is promoted")

    def take_back(self) -> None:
        """Return once the first primaries are primaries, whom a frozen moment may have cost it."""
        for server in self.servers[: self.primaries]:
            with client(server) as node:
                if node.role()[0] == "slave":
                    node.execute_command("CLUSTER FAILOVER")
                    until(lambda node=node: node.role()[0] == "master", "it is a primary again")

    def until_whole(self) -> None:
        """Return once every node sees a whole cluster, and every replica is in step."""
        alive = [server for server in self.servers if server.running]
        for server in alive:
            with client(server) as node:
                until(lambda node=node: _whole(node), "the cluster is whole")
                if node.role()[0] == "slave":
                    until(lambda node=node: node.role()[3] == "connected", "a replica is in step")

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


def _whole(node: redis.Redis) -> bool:
    info = node.execute_command("CLUSTER INFO")
    if not isinstance(info, dict):
        info = dict(line.split(":", 1) for line in info.split())
    return info["cluster_state"] == "ok" and int(info["cluster_slots_ok"]) == SLOTS


@contextlib.contextmanager
def cluster(
    directory: Path,
    *,
    primaries: int = 3,
    replicas: bool = True,
    options: tuple[str, ...] = (),
) -> Iterator[RedisCluster]:
    """A cluster of real servers.

    Args:
        directory: where they work.
        primaries: how many share the slots.
        replicas: whether each has one replica.
        options: more of every server's.
    """
    with contextlib.ExitStack() as stack:
        servers, buses = [], []
        for i in range(primaries * (2 if replicas else 1)):
            buses.append(free_port())
            server = start_redis(
                directory / f"node{i}",
                *("--cluster-enabled", "yes", "--cluster-port", str(buses[-1])),
                *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
                # A replica whose link is quiet for longer than this would not stand for election.
                *("--cluster-replica-validity-factor", "0"),
                *REPLICATION,
                *options,
                port=0,
            )
            stack.callback(server.stop)
            servers.append(server)
        made = RedisCluster(tuple(servers), primaries)
        ids = []
        for i, server in enumerate(servers):
            with client(server) as node:
                if i < primaries:
                    slots = (slot for slot in range(SLOTS) if slot * primaries // SLOTS == i)
                    node.execute_command("CLUSTER ADDSLOTS", *slots)
                node.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
                node.execute_command("CLUSTER MEET", "127.0.0.1", servers[0].port, buses[0])
                ids.append(node.execute_command("CLUSTER MYID"))
        for i in range(primaries, len(servers)):
            with client(servers[i]) as node:
                until(
                    lambda node=node, i=i: node.execute_command(
                        "CLUSTER REPLICATE", ids[i - primaries]
                    ),
                    "a replica knows its primary",
                )
        made.until_whole()
        yield made


@dataclass(frozen=True)
class Watched:
    """A primary, its replica, and the sentinels that watch them."""

    servers: tuple[RedisProcess, RedisProcess]
    sentinels: tuple[RedisProcess, ...]
    name: str = "auth"

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.name}"

    def until_promoted(self, number: int) -> None:
        """Return once this server is the primary, and a sentinel says so."""
        with client(self.servers[number]) as server:
            until(lambda: server.role()[0] == "master", "the replica is promoted")
        for sentinel in self.sentinels:
            if sentinel.running:
                with client(sentinel) as node:
                    until(
                        lambda node=node: (
                            node.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.name)[1]
                            in (str(self.servers[number].port), self.servers[number].port)
                        ),
                        "a sentinel knows the new primary",
                    )


@contextlib.contextmanager
def sentinels(directory: Path, *options: str, number: int = 3) -> Iterator[Watched]:
    """A primary with a replica, watched by sentinels: two of them are a quorum.

    Args:
        directory: where they work.
        options: more of the two servers', "--requirepass" say.
        number: of sentinels.
    """
    with contextlib.ExitStack() as stack:

        def start(name: str, *extra: str) -> RedisProcess:
            server = start_redis(directory / name, *extra, port=0)
            stack.callback(server.stop)
            return server

        first = start("first", *REPLICATION, *options)
        replica = start("replica", *REPLICATION, "--replicaof", f"127.0.0.1 {first.port}", *options)
        watchers = []
        for i in range(number):
            where = directory / f"sentinel{i}"
            where.mkdir(parents=True)
            file = where / "sentinel.conf"
            file.write_text(
                f"sentinel monitor auth 127.0.0.1 {first.port} 2\n"
                f"sentinel down-after-milliseconds auth {NODE_TIMEOUT_MS}\n"
                "sentinel failover-timeout auth 3000\n"
            )
            watchers.append(start(f"sentinel{i}", str(file), "--sentinel"))
        made = Watched((first, replica), tuple(watchers))
        with client(replica) as node:
            until(lambda: node.role()[3] == "connected", "the replica is in step")
        for watcher in watchers:
            with client(watcher) as node:
                until(lambda node=node: _settled(node, made.name, number), "the sentinels agree")
        yield made


def _settled(node: redis.Redis, name: str, number: int) -> bool:
    seen = node.execute_command("SENTINEL MASTER", name)
    if not isinstance(seen, dict):
        seen = dict(zip(seen[::2], seen[1::2], strict=True))
    return (
        int(seen["num-other-sentinels"]) == number - 1
        and int(seen["num-slaves"]) == 1
        and seen["flags"] in ({"master"}, "master")
    )


# TLS


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, a server on 127.0.0.1 and a client, both of that authority."""

    directory: Path

    def __getitem__(self, name: str) -> str:
        return str(self.directory / name)


def certificates(directory: Path) -> Certificates:
    """Made by openssl for one test."""
    directory.mkdir(parents=True, exist_ok=True)

    def openssl(*words: str) -> None:
        subprocess.run(("openssl", *words), cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    strict = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    files = ("-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", "-x509", *key, *files, "-subj", "/CN=test authority", "-days", "2", *strict)
    for name in ("server", "client"):
        (directory / f"{name}.ext").write_text(
            "subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nbasicConstraints=CA:FALSE\n"
        )
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext"),
        )
    return Certificates(directory)


@contextlib.asynccontextmanager
async def tls(directory: Path, made: Certificates, *, ask: bool = False) -> AsyncIterator[int]:
    """A Redis that speaks TLS on a port of 127.0.0.1: by itself if it was built so.

    Many builds are not (the one in our wheel is not). Then TLS ends before it, as in a stunnel.

    Args:
        directory: where it works.
        made: its certificates.
        ask: whether a client must show a certificate.
    """
    port = free_port()
    files = (
        *("--tls-cert-file", made["server.pem"], "--tls-key-file", made["server.key"]),
        *("--tls-ca-cert-file", made["ca.pem"], "--tls-auth-clients", "yes" if ask else "no"),
    )
    try:
        server = start_redis(directory / "tls", "--tls-port", str(port), *files)
    except RuntimeError:
        server = start_redis(directory / "plain")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=made["ca.pem"])
        context.load_cert_chain(made["server.pem"], made["server.key"])
        context.verify_mode = ssl.CERT_REQUIRED if ask else ssl.CERT_NONE
        async with relay(str(server.socket), port=port, context=context):
            yield port
    else:
        yield port
    finally:
        server.stop()
