"""What holds for every command, without a Redis."""

import json
import os
import subprocess
import sys

import click
import pytest

from authsidecar import __version__
from authsidecar.cli.main import cli
from authsidecar.cli.output import printable
from tests.support.cli import invoke


def commands(group: click.Group = cli, *before: str):
    for name, command in group.commands.items():
        yield (*before, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)


ALL = list(commands())
LEAVES = [(words, command) for words, command in ALL if not isinstance(command, click.Group)]


def name(value):
    return " ".join(value) if isinstance(value, tuple) else None


def test_bare_command_shows_help():
    """`authsidecar` alone lists its commands and is no error."""
    result = invoke()
    assert (result.code, result.err) == (0, "")
    assert "Commands:" in result.out
    assert "explain" in result.out


@pytest.mark.parametrize(("words", "command"), LEAVES, ids=name)
def test_every_command_has_help_with_an_example(words, command):
    """`--help` says what a command does, and shows a line that could be typed."""
    result = invoke(*words, "--help")
    assert result.code == 0
    assert f"Usage: authsidecar {' '.join(words)}" in result.out
    assert "Example" in result.out
    assert "authsidecar" in result.out.partition("Example")[2]
    assert max(map(len, result.out.splitlines())) <= 100


@pytest.mark.parametrize(("words", "command"), ALL, ids=name)
def test_version_is_known_everywhere(words, command):
    """`--version` answers before and after every command, whatever else is missing."""
    expected = f"authsidecar {__version__}\n"
    assert invoke(*words, "--version").out == expected
    assert invoke("--version", *words).out == expected


@pytest.mark.parametrize("light", [["--help"], ["--version"], ["token", "create", "--help"]])
def test_help_loads_nothing_heavy(light):
    """Help is quick: no network library, no settings library, no event loop."""
    heavy = "{'aiohttp', 'redis', 'pydantic', 'uvloop', 'prometheus_client', 'asyncio'}"
    code = (
        "import sys; from authsidecar.cli.main import run\n"
        f"code = run({light!r}); print(sorted({heavy} & set(sys.modules)), code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[] 0\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tokn"], "No such command 'tokn'. Did you mean 'token'?"),
        (["token", "list", "--tem", "3"], "No such option '--tem'"),
        (["token", "show", "x"], "'x' is not a whole number from 1 to 9223372036854775807"),
        (["token", "show", "0"], "'0' is not a whole number from 1"),
        (["team", "remove", "9223372036854775808"], "is not a whole number from 0"),
        (["token", "show", "\u0661"], "is not a whole number"),
        (["member", "set", "--team", "1", "--user", "1", "--role", "admn"], "did you mean admin?"),
        (["allowlist", "check", "10.0.0.0/8"], "is not an IP address"),
        (["explain", "GET", "/", "--client-ip", "localhost"], "is not an IP address"),
        (["explain", "GET", "/", "--token-file", "/no/such/file"], "No such file"),
        (["limit", "set", "--user", "1", "--limit", "0"], "0 is not in the range 1<=x<=100000"),
        (["serve", "--workers", "0"], "0 is not in the range"),
        (["api", "enable", "now"], "Got unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_is_one_line_and_code_2(words, said):
    """Wrong usage names what is wrong and where help is, without a stack of usage lines."""
    result = invoke(*words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("authsidecar: ")
    assert said in result.err
    assert result.err.count("\n") == 1
    assert "--help`)" in result.err


@pytest.mark.parametrize(("words", "command"), ALL, ids=name)
def test_the_short_help_is_the_long_one(words, command):
    """`-h` is what hands try first."""
    assert invoke(*words, "-h") == invoke(*words, "--help")
    assert invoke(*words, "-h").code == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tokn"], 2, "No such command 'tokn'"),
        (["token"], 2, "issing"),
        (["token", "list", "--tem", "3"], 2, "No such option '--tem'"),
        (["token", "show", "x"], 2, "'x' is not a whole number"),
        (["team", "list"], 1, "redis.url: redis://127.0.0.1:1 does not answer"),
        (["routes", "list", "--release", "9"], 1, "no routes for Coolify '9'"),
        (["explain", "GET", "/", "--token-file", "/no/such/file"], 2, "No such file"),
        (["team", "list", "--config", "/no/such/file"], 2, "/no/such/file: can't be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.parametrize("first", [True, False])
def test_an_error_under_json_is_one_object(words, code, said, first):
    """On standard error; wherever the option stands."""
    result = invoke("--json", *words) if first else invoke(*words, "--json")
    assert (result.code, result.out, result.err.count("\n")) == (code, "", 1)
    told = json.loads(result.err)
    assert said in told["error"]
    assert told["exit_code"] == code


def test_several_problems_under_json_are_a_list(tmp_path):
    """Of a configuration, and of a route file; in the one object."""
    result = invoke("team", "list", "--json", LIMITS__USER="0", REDIS__BUDGET_MS="x")
    told = json.loads(result.err)
    assert (told["exit_code"], len(told["problems"])) == (2, 2)
    assert told["error"] == "; ".join(told["problems"])
    file = tmp_path / "api.php"
    file.write_text("<?php\nRoute::view('/a', 'b');\nrequire 'x';\n")
    result = invoke("routes", "import", file, "--json")
    told = json.loads(result.err)
    assert (result.out, told["exit_code"]) == ("", 1)
    assert [problem.split(":")[1] for problem in told["problems"]] == ["2", "3"]
    assert "cannot be read whole" in told["error"]


def test_a_json_that_is_an_argument_is_none_of_the_options():
    """Behind `--` it is a name like any other."""
    result = invoke("team", "add", "--", "--json")
    assert result.err.startswith("authsidecar: redis.url")


def test_group_without_command_is_wrong_usage():
    """A noun alone does nothing, and says what could be done with it."""
    result = invoke("token")
    assert (result.code, result.out) == (2, "")
    assert "revoke" in result.err


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("raed", "read"),
        ("deplyo", "deploy"),
        ("write-sensitive", "write:sensitive"),
        ("Root", "root"),
    ],
)
def test_unknown_permission_is_told_the_nearest(wrong, right):
    """A misspelled permission is refused with the name that was probably meant."""
    result = invoke(
        *("token", "create", "--user", 1, "--team", 1, "--name", "ci", "--expires", 7),
        *("--permission", wrong),
    )
    assert result.code == 2
    assert f"'{wrong}' is not a permission; did you mean {right}?" in result.err


def test_legacy_permission_is_not_on_offer():
    """`*` exists in old tokens only."""
    result = invoke(
        *("token", "create", "--user", 1, "--team", 1, "--name", "ci", "--expires", 7),
        *("--permission", "*"),
    )
    assert result.code == 2
    assert "'*' is not a permission" in result.err


def test_redis_that_is_down_is_one_line():
    """Every command says which Redis does not answer, and fails."""
    result = invoke("team", "list")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("authsidecar: redis.url: redis://127.0.0.1:1 does not answer")
    assert result.err.count("\n") == 1


def test_redis_password_is_not_said():
    """The line about a Redis that is down leaves its password out."""
    result = invoke("team", "list", url="redis://user:s3cr3t@127.0.0.1:1")
    assert result.code == 1
    assert "s3cr3t" not in result.err
    assert "127.0.0.1:1" in result.err


@pytest.mark.parametrize("before", [True, False])
def test_missing_configuration_file_is_code_2(before):
    """`--config` is understood before and after the command."""
    option, command = ["--config", "/no/such.yaml"], ["team", "list"]
    result = invoke(*(option + command if before else command + option))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("authsidecar: /no/such.yaml: can't be read")


def test_every_configuration_problem_is_said_at_once(tmp_path):
    """check-config names settings and route files together, each with where it stands."""
    rows = tmp_path / "rows.tsv"
    rows.write_text("GET /api/v1/x reed\n\nFOO /api/v1/y read\n")
    file = tmp_path / "config.yaml"
    file.write_text(f"listen: {{workers: 99}}\ncoolify: {{extra_routes: {rows}}}\n")
    result = invoke("check-config", "--config", file, "--json", LOG__LEVEL="loud")
    assert result.code == 2
    problems = "\n".join(result.json["problems"])
    for place in (f"{file}:1", "AUTHSIDECAR_LOG__LEVEL", f"{rows}: line 1", "line 3"):
        assert place in problems
    assert result.json["valid"] is False
    assert json.loads(result.err)["problems"] == result.json["problems"]
    result = invoke("check-config", "--config", file, LOG__LEVEL="loud")
    assert result.err.count("\n") == 3
    assert all(line.startswith("authsidecar: ") for line in result.err.splitlines())


def test_usable_configuration_is_code_0_with_warnings():
    """What is legal but unwise is warned of, and is no error."""
    result = invoke("check-config", COOLIFY__OUTSIDE="pass")
    assert (result.code, result.out) == (0, "the configuration can be used\n")
    assert "warning: coolify.outside" in result.err
    as_json = invoke("--json", "check-config", COOLIFY__OUTSIDE="pass")
    assert as_json.json["valid"] is True
    assert any("coolify.outside" in line for line in as_json.json["warnings"])


def test_schema_and_example_agree_with_the_settings(tmp_path):
    """The example file is a configuration that can be used, and the schema is JSON."""
    file = tmp_path / "config.yaml"
    file.write_text(invoke("config", "example").out)
    assert invoke("check-config", "--config", file).code == 0
    schema = invoke("config", "schema")
    assert schema.code == 0
    assert '"$schema"' in schema.out


def test_broken_pipe_is_quiet():
    """A reader that has left (`| head`) ends a command without a word on standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "authsidecar", "config", "example"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_interrupt_is_130(monkeypatch):
    """Ctrl-C ends a command with the code that shells expect, and no traceback."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("authsidecar.config.load", interrupted)
    result = invoke("team", "list")
    assert result.code == 130
    assert "Traceback" not in result.err


def test_defect_is_one_line_without_its_words(monkeypatch):
    """What nobody foresaw is told by kind and place; its own words could hold a secret."""

    def broken(*_):
        raise TypeError("67|secret")

    monkeypatch.setattr("authsidecar.config.load", broken)
    result = invoke("team", "list")
    assert result.code == 1
    assert "TypeError in test_main.py" in result.err
    assert "secret" not in result.err


def test_no_colour_where_there_is_no_terminal():
    """Escape sequences never reach a pipe."""
    result = invoke("check-config", COOLIFY__OUTSIDE="pass")
    assert "\x1b" not in result.out + result.err


@pytest.mark.parametrize(
    ("terminal", "environ", "coloured"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours_need_a_terminal_that_wants_them(monkeypatch, terminal, environ, coloured):
    """NO_COLOR and dumb terminals are respected."""
    from authsidecar.cli.output import styled

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    assert ("\x1b[" in styled("x", terminal, fg="red")) is coloured


def test_names_cannot_steer_a_terminal():
    """Control characters in a name are shown, not obeyed."""
    assert printable("a\x1b[31mb\u202ec") == "a\\x1b[31mb\\u202ec"
    assert printable("Größe 日本") == "Größe 日本"
