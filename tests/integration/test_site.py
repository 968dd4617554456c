"""The site of docs/, as `make docs` builds it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.any_python

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the built site; mkdocs had no doubts."""
    out = tmp_path_factory.mktemp("site")
    command = [
        str(Path(sys.executable).parent / "mkdocs"),
        "build",
        "--strict",
        "--site-dir",
        str(out),
    ]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    found = subprocess.run(
        command, check=False, cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return out


def links(page: Path) -> set[Path]:
    """The files of the site that a page's own text links to."""
    text = page.read_text().partition("<article")[2].partition("</article>")[0]
    found = re.findall(r'href="([^"#:]+)(?:#[^"]*)?"', text)
    return {(page.parent / unquote(target)).resolve() for target in found}


def test_every_page_is_linked_from_the_text_of_another(site: Path):
    """From the start page on, without the menu."""
    pages = {page.resolve() for page in site.rglob("*.html")} - {site.resolve() / "404.html"}
    reached, left = set(), {site.resolve() / "index.html"}
    while left:
        reached |= left
        left = {target for page in left for target in links(page) if target in pages} - reached
    assert {page.name for page in pages - reached} == set()
    assert len(pages) > 30


def test_whatever_a_page_links_to_is_part_of_the_site(site: Path):
    """The files of deploy/, too."""
    for page in site.rglob("*.html"):
        missing = {target for target in links(page) if not target.exists()}
        assert not missing, page
    assert (site / "files/deploy/coolify/.env.example").exists()


def test_a_reader_asks_no_other_origin_for_anything(site: Path):
    """No font, script, style or picture comes from elsewhere, nor does a style name one."""
    loaded = (
        r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//|@import|url\(\"?(?:https?:)?//"
    )
    linked = r"<link[^>]*rel=\"?(?:stylesheet|preconnect|preload)[^>]*href=\"?(?:https?:)?//"
    for file in (*site.rglob("*.html"), *site.rglob("*.css")):
        assert not re.search(f"{loaded}|{linked}", file.read_text()), file


def test_the_search_knows_the_pages(site: Path):
    """Its index is a file of the site."""
    index = json.loads((site / "search/search_index.json").read_text())
    assert "permission_missing" in json.dumps(index["docs"])
