"""Each alert has its page, and each page its alert."""

import re
from pathlib import Path

import pytest

from tests.support.prometheus import rules

ROOT = Path(__file__).parents[3]
ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_it_is_and_names_its_page(alert: str) -> None:
    """And the page says what it means, how to see more, what to do."""
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["runbook"] == f"docs/runbooks/{alert}.md"
    text = (ROOT / rule["annotations"]["runbook"]).read_text()
    title, *parts = re.split(r"^#+ (.*)\n", text, flags=re.MULTILINE)[1::2]
    assert title == alert
    assert parts == ["What it means", "See more", "What to do"]


def test_the_how_to_lists_every_alert_with_its_severity() -> None:
    """Each links to its page; no page is of an alert that is gone."""
    page = (ROOT / "docs/how-to/prometheus.md").read_text()
    rows = re.findall(r"^\| \[(\w+)\]\(\.\./runbooks/(\w+)\.md\) \| (\w+) \|", page, re.MULTILINE)
    assert {alert: severity for alert, _, severity in rows} == {
        alert: rule["labels"]["severity"] for alert, rule in ALERTS.items()
    }
    assert all(alert == target for alert, target, _ in rows)
    assert {path.stem for path in (ROOT / "docs/runbooks").iterdir()} == set(ALERTS)


def test_metrics_that_a_runbook_asks_for_are_documented() -> None:
    """A query that is typed from a page at night must be right."""
    known = set(
        re.findall(
            r"`((?:authsidecar|process)_\w+)`",
            (ROOT / "docs/reference/metrics.md").read_text(),
        )
    )
    for path in (ROOT / "docs/runbooks").iterdir():
        for name in re.findall(r"\b(?:authsidecar|process)_\w+", path.read_text()):
            assert name in known, f"{path.name}: {name}"
