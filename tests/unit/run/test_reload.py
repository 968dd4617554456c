"""The configuration read again: all of it or nothing, and what of it needs a restart."""

import asyncio
import json
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from authsidecar.config import ConfigError, Settings, load, load_again
from authsidecar.config.catalogue import SETTINGS
from authsidecar.decision.model import Limit
from authsidecar.observe.log import Log
from authsidecar.run.life import Life
from authsidecar.run.notify_socket import NotifySocket
from authsidecar.run.reload import CHANGEABLE, Reloaded, ReloadError, RunningConfig, reload
from authsidecar.run.reload_on_signal import ReloadsOnSignal
from authsidecar.run.shared_terms import SharedTerms
from authsidecar.run.terms import terms
from tests.support.broken_configs import BROKEN, GOOD, break_file, mend_file

Reload = Callable[[str], Reloaded]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    mend_file(path, GOOD.format(directory=tmp_path))
    return path


@pytest.fixture
def current(path: Path) -> RunningConfig:
    return RunningConfig.of(load(str(path), {}))


def again(path: Path, current: RunningConfig, **environ: str) -> Reloaded:
    return reload(lambda: load_again(str(path), environ), current)


def test_a_limit_a_peer_and_the_enforcement_change(path: Path, current: RunningConfig) -> None:
    """What decides is new, the digest is another, and the changes are named."""
    routes = f"coolify: {{extra_routes: {path.with_name('routes.txt')}}}\n"
    path.write_text(
        routes + "limits: {user: 7}\ntrusted_peers: [192.0.2.0/24]\nenforcement: report\n"
    )
    found = again(path, current, AUTHSIDECAR_DATA_DIR=str(current.settings.data_dir))
    now = found.config.terms
    assert now.rules.limits["user"] == Limit(7, 60_000)
    assert [str(one) for one in found.config.settings.peer_networks] == ["192.0.2.0/24"]
    assert now.report_only
    assert now.digest != current.terms.digest
    assert set(found.changed) == {"limits.user", "trusted_peers", "enforcement"}
    assert found.left == ()


def test_what_needs_a_restart_is_named_and_left(path: Path, current: RunningConfig) -> None:
    """Listeners, Redis and workers are as they were, also in what is in force; the rest changes."""
    path.write_text(
        path.read_text()
        + "listen: {workers: 4, address: 127.0.0.1:4999}\n"
        + "redis: {url: 'redis://:planted@192.0.2.1', public_without_redis: true}\n"
    )
    found = again(path, current)
    assert set(found.left) == {"listen.workers", "listen.address", "redis.url"}
    assert found.changed == ("redis.public_without_redis",)
    assert found.config.settings.listen == current.settings.listen
    assert found.config.settings.redis.url == current.settings.redis.url
    assert found.config.terms.rules.public_without_store
    assert again(path, found.config).changed == ()


def test_own_routes_are_read_again(path: Path, current: RunningConfig, tmp_path: Path) -> None:
    """The same setting, another text in the file that it names: another table and digest."""
    (tmp_path / "routes.txt").write_text("GET /api/v1/other read\n")
    found = again(path, current)
    assert found.changed == ("coolify.extra_routes",)
    assert found.config.terms.digest != current.terms.digest
    templates = [route.template for route in found.config.terms.rules.policy.routes]
    assert "/api/v1/other" in templates


def test_the_same_configuration_has_the_same_digest(path: Path, current: RunningConfig) -> None:
    """Comments and the order of lines are no change."""
    path.write_text("# a comment\n" + path.read_text())
    found = again(path, current)
    assert (found.changed, found.left) == ((), ())
    assert found.config.terms.digest == current.terms.digest


def test_a_secret_is_not_in_the_digest() -> None:
    """Whoever can read the digest could try passwords against it."""

    def digest(url: str, password: str) -> str:
        return terms(Settings.model_validate({"redis": {"url": url, "password": password}})).digest

    assert digest("redis://:a@192.0.2.1", "one") == digest("redis://:b@192.0.2.2", "two")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_in_plain_lines(
    path: Path, current: RunningConfig, kind: str, tmp_path: Path
) -> None:
    """Fifty kinds of breakage: each says what is wrong, a line a problem, without a stack trace."""
    break_file(path, kind)
    with pytest.raises(ReloadError) as caught:
        again(path, current)
    assert caught.value.problems
    for problem in caught.value.problems:
        assert problem.strip()
        assert "\n" not in problem
        assert "Traceback" not in problem
        assert "planted" not in problem


def test_there_are_fifty_kinds_of_breakage() -> None:
    """What the issue asks for."""
    assert len(BROKEN) >= 50


def test_a_defect_of_the_reader_ends_nothing(current: RunningConfig) -> None:
    """An error that nobody foresaw is a refusal as well."""

    def fail() -> Settings:
        raise RecursionError

    with pytest.raises(ReloadError, match="RecursionError"):
        reload(fail, current)


def test_every_problem_is_said(current: RunningConfig) -> None:
    """Three mistakes are three lines."""

    def fail() -> Settings:
        raise ConfigError(("one", "two", "three"))

    with pytest.raises(ReloadError) as caught:
        reload(fail, current)
    assert caught.value.problems == ("one", "two", "three")


def test_what_can_change_is_a_setting() -> None:
    """Each name of the list is one of the catalogue's."""
    for name, fields in CHANGEABLE.items():
        assert any(path[0] == name for path in SETTINGS)
        for field in fields:
            assert (name, field) in SETTINGS


def test_terms_are_handed_over_whole(current: RunningConfig) -> None:
    """What workers read is what the supervisor wrote; half of it is nothing."""
    shared = SharedTerms()
    assert shared.get() is None
    shared.put(current.terms)
    found = shared.get()
    assert found is not None
    assert found.digest == current.terms.digest
    assert str(list(found.rules.policy.routes)) == str(list(current.terms.rules.policy.routes))
    shared._file.seek(60)
    shared._file.write(b"\0" * 8)
    shared._file.flush()
    assert shared.get() is None
    shared.close()


def test_no_secret_is_handed_over(tmp_path: Path) -> None:
    """What is shared is a file, if one in memory."""
    settings = Settings.model_validate(
        {
            "redis": {"url": "redis://:planted@192.0.2.1", "password": "planted"},
            "mail": {"webhook_secret": "planted", "webhook_url": "https://planted.example/planted"},
        }
    )
    assert b"planted" not in pickle.dumps(terms(settings))


async def test_who_asks_for_a_reload_is_told_what_came_of_it(
    path: Path, current: RunningConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new configuration, or why nothing has changed; the log says it too."""
    life, applied = Life(), []
    life.on_change(applied.append)
    log = Log(json_lines=True, stream=sys.stderr)
    reloads = ReloadsOnSignal(lambda: load_again(str(path), {}), current, log, NotifySocket(), life)
    assert life.reload is not None
    mend_file(path, GOOD.format(directory=path.parent).replace("100000", "90000"))
    found = await life.reload()
    assert [one.digest for one in applied] == [current.terms.digest, found.config.terms.digest]
    break_file(path, "no YAML")
    with pytest.raises(ReloadError):
        await life.reload()
    assert life.terms is found.config.terms
    await reloads.close()
    asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
    said = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert said == ["config_reloaded", "reload_refused"]
