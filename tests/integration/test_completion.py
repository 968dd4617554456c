"""What real shells complete, and that they never wait or hear of an error."""

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from authsidecar.cli.completion import ids
from authsidecar.cli.main import cli
from tests.support import seed
from tests.support.cli import with_registry

pytestmark = pytest.mark.any_python

BIN = Path(sys.executable).parent

# The function that a shell calls at a TAB, with what the shell itself would set for it.
SHELLS = {
    "bash": """
source <(authsidecar completion bash)
COMP_WORDS=({words} '{last}')
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_authsidecar_completion authsidecar
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
    "zsh": """
compdef() {{ }}
compadd() {{ print -l -- "${{(@P)@[-1]}}" }}
_describe() {{ print -l -- "${{(@P)3}}" }}
source <(authsidecar completion zsh)
words=({words} '{last}')
CURRENT=$#words
_authsidecar_completion
""",
    "fish": """
authsidecar completion fish | source
complete -C "{words} {last}"
""",
}


@pytest.fixture
def filled(redis_url: str) -> str:
    """A Redis with teams 3 and 31, and tokens 67 and 68 of user 7."""

    async def fill(registry) -> None:
        await seed.user(registry, 7, t3="owner", t31="member")
        for number in (67, 68):
            await registry.put_tokens([seed.token(number, user=7, team=3)])

    asyncio.run(with_registry(redis_url, fill))
    return redis_url


def completed(shell: str, words: str, last: str, url: str, tmp_path: Path) -> list[tuple[str, str]]:
    """What a shell offers at the end of a line: each word with its description, if it shows one."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} on this machine")
    script = SHELLS[shell].format(words=f"authsidecar {words}", last=last)
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    found = subprocess.run(
        [program, *options, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "PATH": f"{BIN}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "LC_ALL": "C.UTF-8",
            "AUTHSIDECAR_REDIS__URL": url,
        },
    )
    assert (found.returncode, found.stderr) == (0, "")
    between = {"bash": "\n", "zsh": ":", "fish": "\t"}[shell]
    return [
        (a, b) for a, _, b in (line.partition(between) for line in found.stdout.split("\n")) if a
    ]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_ids_with_their_names(shell: str, filled: str, tmp_path: Path):
    """The tokens that begin so; bash shows no names."""
    names = ("", "") if shell == "bash" else ("token 67", "token 68")
    found = completed(shell, "token show", "6", filled, tmp_path)
    assert found == list(zip(("67", "68"), names, strict=True))


def test_an_option_completes_ids_as_well(filled: str, tmp_path: Path):
    """Those of teams that begin so."""
    found = completed("bash", "token list --team", "31", filled, tmp_path)
    assert found == [("31", "")]


def test_routes_and_commands_complete_without_redis(tmp_path: Path):
    """They come from the table and the program itself, and ids are left out without a word."""
    away = "redis://127.0.0.1:1"
    found = completed("bash", "routes match POST", "/api/v1/deploy", away, tmp_path)
    assert found == [("/api/v1/deploy", ""), ("/api/v1/deployments/{uuid}/cancel", "")]
    assert ("completion", "") in completed("bash", "", "com", away, tmp_path)
    assert completed("bash", "token show", "", away, tmp_path) == []


def test_bash_completes_by_the_file_of_the_line(filled: str, tmp_path: Path):
    """`--config` before the word counts, and a `~` in it is the home that it stands for."""
    (tmp_path / "own.yaml").write_text(f"redis: {{url: '{filled}'}}\n")
    line = "--config '~/own.yaml' token revoke"
    script = SHELLS["bash"].format(words=f"authsidecar {line}", last="67")
    found = subprocess.run(
        ["bash", "--norc", "-c", script],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert (found.stdout, found.stderr) == ("67\n", "")


def test_an_embedded_redis_is_not_started_for_a_completion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A TAB leaves the data directory as it was: not there."""
    data = tmp_path / "data"
    monkeypatch.setenv("AUTHSIDECAR_REDIS__URL", "embedded")
    monkeypatch.setenv("AUTHSIDECAR_DATA_DIR", str(data))
    assert ids(click.Context(cli), "token", "") == []
    assert not data.exists()


def test_a_redis_that_never_answers_holds_a_shell_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
):
    """It is given up after half a second; the rest is what this machine takes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AUTHSIDECAR_REDIS__URL", url)
        since = time.monotonic()
        assert ids(click.Context(cli), "team", "") == []
        assert time.monotonic() - since < 10


def test_a_name_cannot_say_more_to_a_shell_than_itself(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    """A line's end in a name would be a completion of its own."""

    async def fill(registry) -> None:
        await registry.add_team("one\nplain\n666", seed.TeamId(1))

    asyncio.run(with_registry(redis_url, fill))
    monkeypatch.setenv("AUTHSIDECAR_REDIS__URL", redis_url)
    (item,) = ids(click.Context(cli), "team", "")
    assert (item.value, item.help) == ("1", "one\\nplain\\n666")
