"""The Compose specification's JSON schema, which check-jsonschema ships, asked in this process."""

from pathlib import Path

from check_jsonschema import main
from click.testing import CliRunner


def objections(path: Path) -> str:
    """What it has against a compose file; empty if nothing."""
    done = CliRunner().invoke(main, ["--builtin-schema", "vendor.compose-spec", str(path)])
    return "" if done.exit_code == 0 else f"exit code {done.exit_code}: {done.output}"
