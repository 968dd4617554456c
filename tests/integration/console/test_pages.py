"""What holds on every page of the console."""

import asyncio
import re
import subprocess
import sys

import pytest
from yarl import URL

from authsidecar.serving.console.gate import is_near
from authsidecar.store.console_sessions import ConsoleSessions
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


@pytest.mark.parametrize("path", PAGES_SHOWN)
async def test_nothing_inline_on_any_page(console, path) -> None:
    """No script, style or handler that the policy would have to let run; nothing from elsewhere."""
    text = (await console.get(path)).text
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", text, re.IGNORECASE)
    assert re.findall(r"<script(?![^>]*\ssrc=)", text) == []
    for url in re.findall(r'(?:src|href|action)="([^"#]*)"', text):
        assert url.startswith("/console"), url


async def test_what_pages_name_is_there_and_stays(console) -> None:
    """Style, script and icon: under a name that changes with their content; kept by browsers."""
    text = (await console.get("")).text
    names = set(re.findall(r'"/console(/static/[^"]+)"', text))
    assert len(names) == 3
    for name in names:
        found = await console.get(name)
        assert found.status == 200
        assert "immutable" in found.headers["Cache-Control"]
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        other = await console.get(name.partition("?")[0])
        assert other.headers["Cache-Control"] == "no-cache"
    for name in ("../page.py", "%2e%2e/page.py", "nothing.js", ""):
        assert (await console.get(f"/static/{name}")).status in {404, 303}, name


@pytest.mark.parametrize(
    "path",
    [
        "/tokens?q=%ff%00%ed%a0%80",
        "/tokens?cursor=%ff",
        "/audit?q=%ff&via=%ff",
        "/audit/%ff",
        "/%ff",
        "/static/%ff",
        "/sign-in?next=%ff&link=%ff",
    ],
)
async def test_what_is_no_text_is_no_defect(console, path) -> None:
    """Bytes that are no UTF-8, in every place of a page's address."""
    client = console.client
    answer = await client.get(URL(f"/console{path}", encoded=True), allow_redirects=False)
    assert answer.status < 500
    assert console.log.getvalue() == ""


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"csrf=x", "application/x-www-form-urlencoded; charset=nonsense", 400),
        (b"csrf=%ff&name=%ed%a0%80", "application/x-www-form-urlencoded", 403),
        (b"\xff\xfe=\xff", "application/x-www-form-urlencoded", 400),
        (b"a" * 200_000, "application/x-www-form-urlencoded", 413),
        (b"&".join([b"a=1"] * 600), "application/x-www-form-urlencoded", 413),
        (b"--x--", "multipart/form-data; boundary=x", 415),
    ],
)
async def test_what_is_no_form_is_no_defect(console, body, kind, status) -> None:
    """Each is refused in a sentence."""
    headers = {"Content-Type": kind, "Origin": console.origin}
    answer = await console.client.post("/console/tokens/new", data=body, headers=headers)
    assert answer.status == status, await answer.text()
    assert console.log.getvalue() == ""


async def test_redis_away_is_a_page_too(console, monkeypatch) -> None:
    """In plain words, without a traceback."""

    async def away(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(ConsoleSessions, "find", away)
    page = await console.get("/tokens")
    assert (page.status, page.has("Redis failed under way")) == (503, True)


def test_only_loopback_without_a_certificate() -> None:
    """Whoever reaches it from elsewhere is told how to."""

    def near(here: object, tls: object = None) -> bool:
        return is_near(asyncio.BaseTransport({"sockname": here, "sslcontext": tls}))

    assert near(("127.0.0.1", 4191))
    assert near(("::1", 4191, 0, 0))
    assert near(("::ffff:127.0.0.1", 4191, 0, 0))
    assert near("/run/authsidecar.sock")
    assert near(("192.0.2.1", 4191), object())
    assert not near(("192.0.2.1", 4191))
    assert not near(("fe80::1%eth0", 4191, 0, 2))


def test_a_sidecar_starts_without_templates() -> None:
    """What pages need is only imported for the first of them."""
    code = "import sys, authsidecar.run.sidecar; print([m for m in sys.modules if 'jinja' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
