"""The how-to pages quote the deploy files, and point at them."""

import re

import pytest

from authsidecar.decision.model import Proxy
from authsidecar.demo.proxies import deploy_dir

PAGES = deploy_dir().parent / "docs" / "how-to"
PROXIES = [proxy for proxy in Proxy if proxy is not Proxy.DIRECT]


@pytest.mark.parametrize("proxy", PROXIES)
def test_every_excerpt_stands_in_the_deploy_files(proxy):
    """A reader who copies a line gets the line that was tested."""
    page = (PAGES / f"{proxy.value}.md").read_text(encoding="utf-8")
    files = "\n".join(path.read_text() for path in (deploy_dir() / proxy.value).iterdir())
    # Commands (`sh`, within the steps) are run by tests/e2e/test_documented_commands.py.
    blocks = re.findall(r"^```\w+\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    quoted = [line for block in blocks for line in block.splitlines()]
    assert quoted
    assert [line for line in quoted if line not in files] == []


@pytest.mark.parametrize("proxy", PROXIES)
def test_every_deploy_file_is_linked(proxy):
    """And every link to one leads somewhere."""
    page = (PAGES / f"{proxy.value}.md").read_text(encoding="utf-8")
    linked = {
        (PAGES / link).resolve() for link in re.findall(r"\]\((\.\./\.\./deploy/[^)]*)\)", page)
    }
    assert linked == set((deploy_dir() / proxy.value).iterdir())
