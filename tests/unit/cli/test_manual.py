"""The manual page is about this command line, and installed by the wheel."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from authsidecar.cli.manual import manual

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "man/authsidecar.1"


def test_the_manual_page_has_every_command_as_it_is():
    """If this fails: `python -m authsidecar.cli.manual man/authsidecar.1`."""
    assert PAGE.read_text() == manual()


def test_the_wheel_installs_the_manual_page_where_man_looks():
    """`man authsidecar` finds it beside the program."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared["man/authsidecar.1"] == "share/man/man1/authsidecar.1"


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff on this machine")
def test_groff_has_nothing_to_say_about_the_manual_page():
    """Every request of the page is known, and what begins like one is none."""
    command = ["groff", "-man", "-ww", "-Tascii", "-P", "-cbou", str(PAGE)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert found.stderr == ""
    assert "authsidecar token create [OPTIONS]" in found.stdout
    assert "--token-file -" in found.stdout
    assert "allowlist set" in found.stdout.partition("EXIT STATUS")[0]
