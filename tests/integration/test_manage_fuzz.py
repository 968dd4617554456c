"""What schemathesis makes of the OpenAPI document, sent to a real sidecar.

No 5xx, no status, type, header or field that the document does not have; what it does not allow is
refused. (`ignored_auth` sends wrong keys, which are slowed down after the first: that every
operation wants a key is held by test_manage_api.py.)
"""

import json
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from authsidecar.serving.manage.openapi import text
from tests.support.manage import Api, key
from tests.support.redis import guarded, start_redis
from tests.support.sidecar import start_sidecar
from tests.support.world import populate

ROOT = Path(__file__).parents[2]
SNAPSHOT = ROOT / "docs/reference/manage.openapi.json"
CONFIG = ROOT / "tests/support/schemathesis.toml"
PROGRAM = Path(sysconfig.get_path("scripts")) / "schemathesis"


def test_the_document_is_openapi_3_1() -> None:
    """By the schema of OpenAPI 3.1 and the references within."""
    document = json.loads(text())
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()


def test_the_snapshot_is_the_document() -> None:
    """If this fails: `python -m authsidecar.serving.manage.openapi` with the snapshot's path."""
    assert SNAPSHOT.read_text("utf-8") == text()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    directory = tmp_path_factory.mktemp("fuzz")
    server = start_redis(directory / "redis", port=0)
    populate(server)
    sidecar = start_sidecar(directory, server.url)
    yield Api(sidecar, server.url, key(server.url, "read"), key(server.url, "write"))
    assert sidecar.events("defect") == []
    assert sidecar.stop() == 0
    server.stop()


def fuzz(api: Api, directory: Path, *words: str) -> None:
    command = (
        *(str(PROGRAM), "--config-file", str(CONFIG), "run"),
        f"{api.sidecar.management_url}/manage/v1/openapi.json",
        *("-H", f"Authorization: Bearer {api.writing}", "--no-color", "--seed", "11"),
        *("--checks", "all", "--exclude-checks", "ignored_auth", "--warnings", "off", *words),
    )
    done = subprocess.run(
        guarded(*command), cwd=directory, capture_output=True, text=True, timeout=580, check=False
    )
    told = "\n".join(line[:300] for line in done.stdout.splitlines())
    assert done.returncode == 0, told[-20_000:] + done.stderr[-2000:]
    assert "Tested: " in told


@pytest.mark.timeout(300)
def test_random_requests_to_each_operation(api: Api, tmp_path: Path) -> None:
    """A few that its document allows, and a few that it does not."""
    fuzz(api, tmp_path, "--phases", "fuzzing", "--max-examples", "3")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_edges_of_every_field_and_chains_of_requests(api: Api, tmp_path: Path) -> None:
    """What one operation gives is what another takes: made, read, changed, removed, read again."""
    fuzz(api, tmp_path, "--phases", "coverage,fuzzing,stateful", "--max-time", "100")
