"""A real Prometheus, where Debian's package is installed, with the files of deploy/."""

import atexit
import json
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.support.redis import free_port, guarded
from tests.support.sidecar import get
from tests.support.waiting import until

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = DEPLOY / "prometheus"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
MISSING = "Prometheus is not installed: apt-get install prometheus"

SCRAPE_S = 0.5
"""The time between two scrapes and two evaluations here, in seconds."""

Labels = dict[str, str]


def rules(name: str) -> list[dict]:
    """The rules of a file of deploy/prometheus, of all its groups."""
    groups = yaml.safe_load((FILES / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def quicker(text: str) -> str:
    """The same rules for a test: what is waited for is a second, what is looked back over six.

    More than five minutes become one: for what takes its time, a restart on a busy machine say.
    """
    text = re.sub(r"\bfor: \d+m\b", "for: 1s", text)
    return re.sub(r"\[\d+[mh]\]", "[60s]", text.replace("[5m]", "[6s]"))


@dataclass(slots=True)
class Prometheus:
    """A server that runs."""

    port: int
    process: subprocess.Popen[bytes]

    def query(self, expression: str) -> list[tuple[Labels, float]]:
        """What an expression says now: labels and value of each series."""
        words = urllib.parse.urlencode({"query": expression})
        answer = get(self.port, f"/api/v1/query?{words}", {}).json
        assert answer["status"] == "success", (expression, answer)
        data = answer["data"]
        assert data["resultType"] == "vector", expression
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def firing(self) -> dict[str, list[dict]]:
        """The alerts that fire now, by name."""
        found: dict[str, list[dict]] = {}
        for one in get(self.port, "/api/v1/alerts", {}).json["data"]["alerts"]:
            if one["state"] == "firing":
                found.setdefault(one["labels"]["alertname"], []).append(one)
        return found

    def until_firing(self, *names: str) -> None:
        """Return once each of these alerts has been seen firing, with all its words filled in."""
        missing = set(names)

        def seen() -> bool:
            for name, alerts in self.firing().items():
                missing.discard(name)
                for one in alerts:
                    text = json.dumps(one["annotations"])
                    assert not re.search(r"error|no value", text), text
            return not missing

        until(seen, f"the alerts {names}", patience_s=100)

    def until_scraped(self, times: int = 3) -> None:
        """Return once every target has been scraped so often from now on."""
        until(
            lambda: (
                bool(found := self.query("count_over_time(up[1h])"))
                and all(value >= times for _, value in found)
            ),
            "scrapes",
        )

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def start_prometheus(directory: Path, targets: Iterable[int], *, quick: bool = False) -> Prometheus:
    """Start one with deploy/prometheus, that scrapes often; ends with the test run.

    Args:
        directory: where it keeps its data.
        targets: the ports of management listeners.
        quick: whether alerts come after a second, and rates look back over a few.
    """
    assert PROMETHEUS is not None, MISSING
    directory.mkdir(parents=True)
    for name in ("rules.yml", "alerts.yml"):
        text = (FILES / name).read_text()
        (directory / name).write_text(quicker(text) if quick else text)
    text = (FILES / "prometheus.yml").read_text()
    text = re.sub(r"(_interval:) \d+s", rf"\1 {round(SCRAPE_S * 1000)}ms", text)
    places = json.dumps([f"127.0.0.1:{port}" for port in targets])
    text, found = re.subn(r"targets: \[traefik:4191\]", f"targets: {places}", text)
    assert found == 1
    (directory / "prometheus.yml").write_text(text)
    port = free_port()
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            guarded(
                PROMETHEUS,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    made = Prometheus(port, process)
    atexit.register(made.stop)

    def ready() -> bool:
        assert process.poll() is None, (directory / "prometheus.log").read_text()[-2000:]
        try:
            return get(port, "/-/ready", {}).status == 200
        except OSError:
            return False

    until(ready, "Prometheus")
    return made
