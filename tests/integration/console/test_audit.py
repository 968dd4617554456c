"""The audit in the console."""

import re
from typing import get_args

import pytest

from authsidecar.decision.model import UserId
from authsidecar.serving.manage import models
from authsidecar.store.audit import Origin, Via
from authsidecar.store.registry import Registry
from tests.support.console import HOSTILE, Browser


@pytest.fixture
async def changed(console: Browser) -> Browser:
    """A browser; 60 changes by the command line, and one over the API by somebody odd."""
    registry = Registry(console.redis, console.sidecar.keys, Origin("root", Via.CLI, "host"))
    for number in range(1, 61):
        await registry.add_user(f"User {number}", f"{number}@example.com", UserId(number))
    odd = Registry(console.redis, console.sidecar.keys, Origin(HOSTILE, Via.API, "192.0.2.9"))
    await odd.set_instance(allowlist="198.51.100.0/24")
    return console


def rows(text: str) -> list[str]:
    return re.findall(r'href="/console/audit/(\d+-\d+)"', text)


async def test_changes_are_shown_page_by_page(changed: Browser) -> None:
    """The newest first, each once; each can be looked at whole."""
    first = await changed.get("/audit")
    (more,) = re.findall(r'class="button" href="/console([^"]+)"', first.text)
    second = await changed.get(more.replace("&amp;", "&"))
    assert (len(rows(first.text)), len(rows(second.text))) == (50, 13)
    assert not set(rows(first.text)) & set(rows(second.text))
    one = await changed.get(f"/audit/{rows(first.text)[0]}")
    assert one.has("198.51.100.0/24")
    assert (await changed.get("/audit/1-1")).status == 404


@pytest.mark.parametrize(
    ("query", "count"),
    [("via=api", 1), ("q=192.0.2", 1), ("q=USER%2013", 1), ("q=sign-in", 1), ("q=x&via=sync", 0)],
)
async def test_changes_are_filtered(changed: Browser, query, count) -> None:
    """By what was done, to what, by whom, from where, and how it came."""
    page = await changed.get(f"/audit?{query}")
    assert page.status == 200
    assert len(rows(page.text)) == count
    assert page.has("Nothing found among 63 changes") == (count == 0)


def test_the_api_can_show_every_way_of_a_change() -> None:
    """What the audit may hold is what the operations may answer."""
    shown = get_args(models.AuditRecord.model_fields["via"].annotation)
    assert set(shown) == {one.value for one in Via}
