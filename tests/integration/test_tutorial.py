"""The tutorial does what it says, typed as it stands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.redis import free_port, guarded

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_tutorial_answers_as_it_says(tmp_path: Path, redis_url: str):
    """Every block but the installation, in one shell; the statuses are those of the text."""
    install, *blocks = re.findall(
        r"^```sh\n(.*?)^```", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE
    )
    assert "pip install" in install
    port, management = str(free_port()), str(free_port())
    script = "".join(blocks).replace("4190", port).replace("4191", management)
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "AUTHSIDECAR_DATA_DIR": str(tmp_path / "data"),
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
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    statuses = re.findall(r"^(\d{3})$", found.stdout, re.MULTILINE)
    assert statuses == ["200", "403", "404", "200", "200", "429", "403", "401"], found.stdout
