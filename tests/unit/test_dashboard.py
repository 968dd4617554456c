"""The dashboard's file is what its generator writes, and Grafana finds it."""

import json
import re
import runpy
from collections import Counter
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy/grafana"
FILE = GRAFANA / "authsidecar.json"


def panels() -> list[dict]:
    return json.loads(FILE.read_text())["panels"]


def test_the_file_is_what_the_generator_writes() -> None:
    """Else: make generate."""
    assert FILE.read_text() == runpy.run_path(str(GRAFANA / "generate.py"))["text"]()


def test_no_panel_lies_on_another() -> None:
    """Each has its own place within the 24 columns, and its own id."""
    taken: Counter[tuple[int, int]] = Counter()
    for panel in panels():
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        assert columns[-1] < 24, panel["title"]
        taken.update((x, y) for x in columns for y in range(place["y"], place["y"] + place["h"]))
    assert set(taken.values()) == {1}
    assert set(Counter(panel["id"] for panel in panels()).values()) == {1}


def test_every_documented_metric_is_on_a_panel() -> None:
    """One that is worth a row of the reference is worth a look."""
    text = (ROOT / "docs/reference/metrics.md").read_text()
    metrics = set(re.findall(r"^\| `((?:authsidecar|process)_\w+)`", text, re.MULTILINE))
    asked = " ".join(query["expr"] for panel in panels() for query in panel.get("targets", ()))
    assert {name for name in metrics if name not in asked} == set()


def test_compose_gives_grafana_the_data_source_and_the_dashboard() -> None:
    """Names in the provisioning files are those of the compose file."""
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    places = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    provisioning = GRAFANA / "provisioning"
    assert places["./grafana/provisioning"] == "/etc/grafana/provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards/authsidecar.yml").read_text())[
        "providers"
    ]
    assert places["./grafana/authsidecar.json"] == f"{provider['options']['path']}/{FILE.name}"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    assert {name for name, one in services.items() if "monitoring" in one.get("profiles", ())} == {
        "prometheus",
        "grafana",
    }
