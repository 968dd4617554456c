"""What holds on every page of the console."""

import pytest

from tests.integration.console.conftest import PAGES_SHOWN


@pytest.mark.parametrize("path", PAGES_SHOWN)
async def test_each_page_is_shown(console, path) -> None:
    """With the policy that lets nothing inline run, and no cache."""
    page = await console.get(path)
    assert page.status == 200, page.text
    assert "<h1" in page.text
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["Cache-Control"] == "no-store"
