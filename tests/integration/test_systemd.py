"""The units in deploy/systemd: systemd's own tools accept them, and what they start works."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from authsidecar.demo.proxies import deploy_dir
from tests.integration.test_life import GOOD, populate
from tests.integration.test_service_manager import ready
from tests.support.service_manager import ServiceManager
from tests.support.sidecar import SidecarProcess, get
from tests.support.wire import Wire

pytestmark = pytest.mark.any_python

UNITS = deploy_dir() / "systemd"
PROGRAM = "/opt/authsidecar/bin/authsidecar"


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


def lines(name: str, key: str) -> list[str]:
    """The values of a key in a unit, in order."""
    found = (line.partition("=") for line in (UNITS / name).read_text().splitlines())
    return [value for before, _, value in found if before == key]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, with a program that is there."""
    place = tmp_path / "units"
    shutil.copytree(UNITS, place)
    unit = place / "authsidecar.service"
    unit.write_text(unit.read_text().replace(PROGRAM, shutil.which("true") or ""))
    return place


def run(*command: str | Path) -> str:
    """What it writes; it must not fail."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs("systemd-analyze")
def test_systemd_accepts_the_units(installed: Path) -> None:
    """Nothing is misspelled, unknown to it or missing."""
    units = [*installed.glob("*.socket"), installed / "authsidecar.service"]
    assert run("systemd-analyze", "verify", *units) == ""


@needs("systemd-analyze")
def test_the_service_is_exposed_to_little(installed: Path) -> None:
    """At most 1.5, of the 10 that a unit has which restricts nothing."""
    unit = installed / "authsidecar.service"
    run("systemd-analyze", "security", "--offline=true", "--threshold=15", unit)


@needs("systemd-sysusers")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes users and directories of root")
def test_the_user_and_the_directories_are_made(tmp_path: Path) -> None:
    """As root's, and the credentials' for root alone."""
    root = f"--root={tmp_path}"
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", root, UNITS / "authsidecar.sysusers")
    assert (tmp_path / "etc/passwd").read_text().startswith("authsidecar:")
    run("systemd-tmpfiles", root, "--create", UNITS / "authsidecar.tmpfiles")
    modes = {
        str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o777)
        for path in (*(tmp_path / "etc").glob("authsidecar/**"), tmp_path / "run/authsidecar")
    }
    assert modes == {
        "etc/authsidecar": "0o755",
        "etc/authsidecar/credentials": "0o700",
        "run/authsidecar": "0o755",
    }


@pytest.fixture
async def redis_here(redis_client: Redis, redis_url: str) -> str:
    await populate(redis_client)
    return redis_url


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


async def test_the_command_works_with_its_own_environment(redis_here: str, short: Path) -> None:
    """The unit's, and a credential's: what systemd puts for %S and %d is all that is added."""
    (short / "redis-url").write_text(redis_here + "\n")
    environ = dict(
        line.replace("%S", str(short)).replace("%d", str(short)).split("=", 1)
        for name in ("authsidecar.service", "authsidecar.service.d/credentials.conf")
        for line in lines(name, "Environment")
    )
    program, *arguments = lines("authsidecar.service", "ExecStart")[0].split()
    assert (program, arguments) == (PROGRAM, ["serve"])
    with ServiceManager(short) as manager:
        names = [lines(f"authsidecar-{one}.socket", "FileDescriptorName") for one in manager.names]
        assert names == [[one] for one in manager.names]
        assert isinstance(manager.place, int)
        process = SidecarProcess(
            manager.place,
            manager.management_port,
            {**environ, **manager.environ},
            short / "log",
            program=("-m", "tests.support.service_manager", "-m", "authsidecar"),
            descriptors=manager.descriptors,
        )
        manager.at_end(process.kill)
        process.start(wait=False)
        ready(manager, process)
        assert get(manager.management_port, "/readyz", {}).status == 200
        async with Wire(manager.place) as wire:
            assert (await wire.ask(GOOD)).status == 200
        assert process.stop() == 0
