"""Pictures of the console for README and docs, from a demo that runs: `make screenshots`."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")

TRAFFIC_S = 45
"""How long the demo's clients are at work before pictures are taken, in seconds."""

PICTURES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("overview-light", "", {"viewport": {"width": 1280, "height": 900}}),
    ("overview-dark", "", {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"}),
    ("tokens", "/tokens", {"viewport": {"width": 1280, "height": 700}}),
    ("decision-phone", "/decisions", {"viewport": {"width": 390, "height": 844}}),
)
"""Name, page and browser; of decisions, the latest refusal is opened."""


def main(directory: Path) -> None:
    """Start the demo, wait for its traffic, and write a PNG for each picture."""
    directory.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-m", "authsidecar", "demo"], stdout=subprocess.PIPE, text=True
    ) as demo:
        try:
            assert demo.stdout is not None
            link = next(
                found[0]
                for line in demo.stdout
                if (found := re.search(r"http\S+/console/\S+", line))
            )
            time.sleep(TRAFFIC_S)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
                )
                take(browser, link, directory)
        finally:
            demo.terminate()


def take(browser: Browser, link: str, directory: Path) -> None:
    """Sign in, and take all pictures with the same session."""
    first = browser.new_context()
    page = first.new_page()
    page.goto(link)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/console")
    console, session = page.url, first.storage_state()
    for name, path, how in PICTURES:
        page = browser.new_context(storage_state=session, **how).new_page()
        page.goto(console + path)
        if path == "/decisions":
            page.goto(f"{console}/decisions?outcome=deny")
            page.locator("main a[href*='/decisions/']").first.click()
        page.screenshot(path=directory / f"{name}.png")
    browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
