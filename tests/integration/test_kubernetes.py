"""What the manifests start works, with exactly the environment that they give."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio import Redis

from authsidecar.demo.proxies import deploy_dir
from tests.integration.test_life import GOOD, populate
from tests.support.fork_server import Process
from tests.support.kustomize import Document, render
from tests.support.redis import free_port
from tests.support.sidecar import get
from tests.support.waiting import until
from tests.support.wire import Wire

pytestmark = pytest.mark.any_python

ROOT = deploy_dir() / "kubernetes"
DEPLOYED = [
    ROOT / "base",
    *sorted(path.parent for path in ROOT.glob("overlays/*/kustomization.yaml")),
]


@dataclass(frozen=True)
class Pod:
    """A container that runs as a process here.

    Attributes:
        place: where it is asked.
        management: the port of its probes.
        container: as the manifest has it.
        log: what it wrote.
    """

    place: int | str
    management: int
    container: Document
    log: Path

    def probe(self, name: str) -> int:
        """The status that the kubelet would see."""
        found = self.container[name]["httpGet"]
        assert found["port"] == "management"
        return get(self.management, found["path"], {}).status


@contextmanager
def pod(documents: list[Document], directory: Path, url: str) -> Iterator[Pod]:
    """The container as the kubelet starts it: what is mounted is in `directory`, ports are free."""
    (deployment,) = (one for one in documents if one["kind"] == "Deployment")
    maps = {one["metadata"]["name"]: one["data"] for one in documents if one["kind"] == "ConfigMap"}
    spec = deployment["spec"]["template"]["spec"]
    container = spec["containers"][0]
    environ = image_environment()
    for source in container["envFrom"]:
        environ |= maps[source["configMapRef"]["name"]]
    here = {"/var/lib/authsidecar": str(directory)}
    for mount in container["volumeMounts"]:
        here[mount["mountPath"]] = str(directory)
    (directory / "redis-url").write_text(url)
    ports = {str(one["containerPort"]): free_port() for one in container["ports"]}
    environ = {name: localized(value, here, ports) for name, value in environ.items()}
    environ["AUTHSIDECAR_TRUSTED_PEERS"] += ",127.0.0.0/8"
    log = directory / "log"
    with log.open("wb") as out:
        process = Process(
            [sys.executable, "-m", "authsidecar", *container["args"]],
            env={"PATH": os.defpath, **environ},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    socket = environ.get("AUTHSIDECAR_LISTEN__UNIX_SOCKET")
    made = Pod(socket or ports["4190"], ports["4191"], container, log)
    try:
        until(lambda: process.poll() is not None or b'"listening"' in log.read_bytes(), "the start")
        yield made
        process.send_signal(signal.SIGINT)  # as SIGTERM, without the delay
        assert process.wait(spec["terminationGracePeriodSeconds"]) == 0
    finally:
        process.kill()
        process.wait()


def image_environment() -> dict[str, str]:
    """What the image sets for us."""
    text = (deploy_dir().parent / "Dockerfile").read_text()
    return dict(re.findall(r"(AUTHSIDECAR_\w+)=(\S+)", text))


def localized(value: str, paths: Mapping[str, str], ports: Mapping[str, int]) -> str:
    """The same with the paths and ports of this machine."""
    for old, new in paths.items():
        if f"{value}/".startswith(f"{old}/"):
            return new + value.removeprefix(old)
    for number, port in ports.items():
        value = re.sub(rf":{number}$", f":{port}", value)
    return value


@pytest.mark.parametrize("directory", DEPLOYED, ids=lambda path: path.name)
async def test_the_container_answers_proxies_and_probes(
    directory: Path, tmp_path: Path, redis_client: Redis, redis_url: str
) -> None:
    """Whoever is in the pod network, which is this machine's loopback here."""
    await populate(redis_client)
    with pod(render(directory), tmp_path, redis_url) as started:
        assert b'"listening"' in started.log.read_bytes(), started.log.read_text()
        assert started.probe("livenessProbe") == 200
        assert started.probe("readinessProbe") == 200
        async with Wire(started.place) as wire:
            assert (await wire.ask(GOOD)).status == 200
