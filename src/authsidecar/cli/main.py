"""The entry point: all commands by name, and what an error looks like."""

import json
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import click

from authsidecar.cli import (
    allowlist,
    api,
    audit,
    canaries,
    completion,
    config,
    console,
    decisions,
    doctor,
    explain,
    health,
    keys,
    limits,
    mcp,
    members,
    notify,
    routes,
    serve,
    simulate,
    state,
    sync,
    teams,
    tokens,
    users,
)
from authsidecar.cli.errors import MisconfiguredError, OutputError, RefusedError
from authsidecar.cli.options import Group
from authsidecar.cli.streams import complete, leave, tell, write

DONE = 0
REFUSED = 1
WRONG_USAGE = 2
INTERRUPTED = 130


@click.group(
    cls=Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Guard Coolify's API at the reverse proxy.

    \b
    Examples:
      authsidecar demo
      authsidecar serve --config /etc/authsidecar/config.yaml
      authsidecar token create --user 1 --team 1 --name deploys --permission deploy --expires 90
      authsidecar explain POST /api/v1/deploy --token-file token.txt
    """
    if context.invoked_subcommand is None:
        write(context.get_help())


for command in (
    serve.serve,
    serve.demo,
    health.health,
    config.check_config,
    config.config,
    explain.explain,
    decisions.decisions,
    simulate.simulate,
    doctor.doctor,
    teams.team,
    users.user,
    members.member,
    tokens.token,
    canaries.canary,
    keys.key,
    console.console,
    audit.audit,
    api.api,
    mcp.mcp,
    allowlist.allowlist,
    limits.limit,
    routes.routes,
    state.state,
    sync.sync,
    notify.notify,
    completion.completion,
):
    cli.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; never raises for anything but a broken interpreter.

    Args:
        arguments: without the program's name.

    Returns:
        The exit code: 0 done or allowed, 1 refused or failed, 2 wrong usage or configuration.
    """
    say = _as_object if "--json" in takewhile(lambda word: word != "--", arguments) else _as_lines
    try:
        code = cli.main(list(arguments), prog_name="authsidecar", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        if say is _as_lines:
            tell(error.format_message())
            return WRONG_USAGE
        return say(WRONG_USAGE, _usage(error, "a command is missing"))
    except click.UsageError as error:
        return say(WRONG_USAGE, _usage(error, error.format_message()))
    except click.ClickException as error:
        return say(REFUSED, error.format_message())
    except MisconfiguredError as error:
        return say(WRONG_USAGE, None, *error.problems)
    except OutputError as error:
        return REFUSED if error.left else say(REFUSED, str(error))
    except RefusedError as error:
        return say(REFUSED, str(error), *error.problems)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # an operator is never shown a traceback
        return say(REFUSED, f"a defect of authsidecar, please report it: {_where(error)}")
    return code if isinstance(code, int) else DONE


def _usage(error: click.UsageError, problem: str) -> str:
    command = error.ctx.command_path if error.ctx else "authsidecar"
    return f"{problem.rstrip('.')} (see `{command} --help`)"


def _as_lines(code: int, message: str | None, *problems: str) -> int:
    """Say an error to people: what was found, then why it ends.

    Args:
        code: the exit code, given back.
        message: why it ends; None: the problems say it all.
        problems: what was found, one line each.
    """
    for problem in problems:
        tell(_line(problem) if message is None else problem)
    if message is not None:
        tell(_line(message))
    return code


def _as_object(code: int, message: str | None, *problems: str) -> int:
    """Say the same to a script."""
    said = "; ".join(problems) if message is None else message
    found: dict[str, object] = {"error": " ".join(said.split()), "exit_code": code}
    if problems:
        found["problems"] = problems
    tell(json.dumps(found))
    return code


def _line(problem: str) -> str:
    return f"authsidecar: {' '.join(problem.split())}"


def _where(error: BaseException) -> str:
    """The kind of an error and the line of ours that it came from; its own words may be secret."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" in {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{place}"


def main() -> None:
    """Run the command line of this process."""
    complete()
    try:
        code = run(sys.argv[1:])
    except SystemExit as end:  # gunicorn's
        code = end.code if isinstance(end.code, int) else DONE
    finally:
        leave()
    life = sys.modules.get("authsidecar.run.life")
    if life is not None and life.LEFT_OPEN:  # by `serve`
        life.leave(code)
    sys.exit(code)
