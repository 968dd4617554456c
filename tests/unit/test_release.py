"""What a release rests on: the version, the extras that pages name, and the workflow."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from authsidecar import __version__

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = set(re.findall(r"^EXTRAS := (.*)$", MAKEFILE, re.MULTILINE)[0].split(","))
ACTIONLINT = shutil.which("actionlint", path=f"{Path(sys.executable).parent}:/usr/bin:/bin")


def test_release_check_installs_every_extra_that_there_is_for_users():
    """Only what developers need is left out."""
    assert PROJECT["optional-dependencies"].keys() - {"dev"} == EXTRAS


def test_every_extra_that_a_page_tells_to_install_is_checked():
    """In README, docs and the program's own messages."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.py")]
    text = "\n".join(page.read_text() for page in pages)
    named = re.findall(r"pip install '[^'\[\n]*\[([a-z,]+)\]'", text)
    assert len(named) >= 4
    assert {extra for found in named for extra in found.split(",")} <= EXTRAS


def test_the_changelog_tells_who_upgrades_to_this_version_what_to_do():
    """A section of its own, with notes."""
    text = (ROOT / "CHANGELOG.md").read_text()
    section = text.partition(f"\n## [{__version__}]")[2].partition("\n## ")[0]
    assert "### If you upgrade from " in section


def test_the_release_workflow_runs_tasks_of_the_makefile_only():
    """What is released was checked by the tasks that CI runs."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    tasks = [run.removeprefix("make ") for run in steps if run.startswith("make ")]
    assert {"lint", "test", "release-check", "sbom"} <= set(tasks)
    for task in tasks:
        assert re.search(rf"^{task}:.*##", MAKEFILE, re.MULTILINE), task
    assert workflow["permissions"] == {}


@pytest.mark.skipif(ACTIONLINT is None, reason="no actionlint; make release-check builds it")
def test_actionlint_has_nothing_to_say_about_the_workflows():
    """The linter's own words are the failure's."""
    command = [str(ACTIONLINT), *map(str, ROOT.glob(".github/workflows/*.yml"))]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
