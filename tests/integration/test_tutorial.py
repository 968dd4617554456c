"""The tutorial does what it says, typed as it stands."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.redis import free_port, guarded

pytestmark = pytest.mark.any_python

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs/tutorial.md"


@pytest.mark.slow  # it makes an environment, and installs
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_tutorial_answers_as_it_says(tmp_path: Path, redis_url: str):
    """Every block, in one shell; the statuses are those of the text.

    The installation is real, but takes nothing from a registry: what it needs is there already.
    """
    blocks = re.findall(r"^```sh\n(.*?)^```", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)
    assert "pip install" in blocks[0]
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, checkout)
    for name in ("src", "deploy", "man"):
        shutil.copytree(ROOT / name, checkout / name)
    (checkout / "docs/reference").mkdir(parents=True)
    shutil.copy(ROOT / "docs/reference/reason-codes.md", checkout / "docs/reference")
    port, management = str(free_port()), str(free_port())
    script = "".join(blocks).replace("4190", port).replace("4191", management)
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads the option's name without its `no`
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_IGNORE_INSTALLED": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "AUTHSIDECAR_REDIS__URL": redis_url,  # a server that runs saves a start for each command
        "AUTHSIDECAR_LISTEN__ADDRESS": f"127.0.0.1:{port}",
        "AUTHSIDECAR_MANAGEMENT__ADDRESS": f"127.0.0.1:{management}",
        # A loaded test machine is no outage.
        "AUTHSIDECAR_REDIS__BUDGET_MS": "5000",
    }
    found = subprocess.run(
        guarded(
            "/bin/bash", "-c", f"set -e\ntrap 'kill %1 2>/dev/null || true; wait' EXIT\n{script}"
        ),
        check=False,
        cwd=checkout,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Successfully installed authsidecar" in found.stdout
    assert (checkout / "tutorial/venv/bin/authsidecar").exists()
    statuses = re.findall(r"^(\d{3})$", found.stdout, re.MULTILINE)
    assert statuses == ["200", "403", "404", "200", "200", "429", "403", "401"], found.stdout


@pytest.mark.slow  # it waits for Retry-After
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_tutorial_for_clients_is_answered_as_it_says(tmp_path: Path):
    """In front of a real demo; the statuses are those of the text."""
    text = (ROOT / "docs/tutorial-client.md").read_text()
    script = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    found = subprocess.run(
        guarded(
            "/bin/bash", "-c", f"set -e\ntrap 'kill %1 2>/dev/null || true; wait' EXIT\n{script}"
        ),
        check=False,
        cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    statuses = re.findall(r"^(\d{3})$", found.stdout, re.MULTILINE)
    assert statuses == ["200", "401", "403", "200", "200", "200", "429", "200"], found.stdout
    assert '"code": "token_unknown"' in found.stdout
    assert "\nwrite\n" in found.stdout
