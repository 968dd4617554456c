"""What acts beyond the guarded host stands in docs/reference/other-sites.md, or nothing does."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from authsidecar.decision.model import Proxy
from authsidecar.demo.proxies import deploy_dir

PAGE = (deploy_dir().parent / "docs" / "reference" / "other-sites.md").read_text("utf-8")


def text(name: str) -> str:
    """A deploy file without its comments."""
    return re.sub(r"(?m)(^|\s)#.*$", "", (deploy_dir() / name).read_text("utf-8"))


def traefik() -> Iterator[str]:
    """What an entry point has beside its address and its certificate."""
    for entry in yaml.safe_load(text("traefik/traefik.yml"))["entryPoints"].values():
        yield from entry.keys() - {"address", "http"}
        yield from entry["http"].keys() - {"tls"}


def nginx() -> Iterator[str]:
    """Directives of `http` that are in no `server`, and name nothing."""
    depth, block = 0, ""
    for line in text("nginx/nginx.conf").splitlines():
        word = line.split()[0] if line.strip() else ""
        if depth == 1 and block == "http" and word not in {"upstream", "map", "server", "", "}"}:
            yield word
        block = word if depth == 0 and word else block
        depth += line.count("{") - line.count("}")


def caddy() -> Iterator[str]:
    """The options before all sites."""
    options = re.search(r"(?ms)^\{\n(.*?)^\}", text("caddy/Caddyfile"))
    assert options
    yield from (line.split()[0] for line in options[1].splitlines() if line.strip())


def _manager() -> dict[str, Any]:
    [listener] = yaml.safe_load(text("envoy/envoy.yaml"))["static_resources"]["listeners"]
    [chain] = listener["filter_chains"]
    [manager] = chain["filters"]
    return manager["typed_config"]


def envoy() -> Iterator[str]:
    """What the connection manager has beside its filters and hosts."""
    yield from _manager().keys() - {
        *("@type", "stat_prefix", "codec_type", "route_config", "http_filters"),
    }


def haproxy() -> Iterator[str]:
    """Global settings, and rules of a frontend that some request to another host meets."""
    section = ""
    for line in filter(str.strip, text("haproxy/haproxy.cfg").splitlines()):
        if not line.startswith(" "):
            section = line.partition(" ")[0]
        elif section in {"global", "defaults"}:
            yield from {line.split()[0]} - {"mode"}
        elif section == "frontend" and line.split()[0].startswith(("http-", "use_", "default_")):
            for condition in line.rpartition(" if ")[2].split(" or "):
                if not re.search(r"\bcoolify\b|txn\.auth", condition):
                    yield condition.split("{")[1].strip(" }!")


FOUND = {
    Proxy.TRAEFIK: traefik,
    Proxy.NGINX: nginx,
    Proxy.CADDY: caddy,
    Proxy.ENVOY: envoy,
    Proxy.HAPROXY: haproxy,
}


def listed(proxy: str) -> str:
    """The settings in the page's rows of this proxy."""
    rows = (line.split(" | ") for line in PAGE.splitlines() if line.startswith("| "))
    return " ".join(row[1] for row in rows if row[0].lower() == f"| {proxy}")


@pytest.mark.parametrize("proxy", FOUND)
def test_what_acts_beyond_the_host_is_listed(proxy: Proxy) -> None:
    """In the page's table."""
    found = set(FOUND[proxy]())
    assert found or proxy is Proxy.NGINX
    assert {name for name in found if name not in listed(proxy.value)} == set()


def test_envoy_asks_and_answers_for_its_host_alone() -> None:
    """No filter is on but for hosts that ask for it, and no local reply is for another host."""
    manager = _manager()
    *filters, router = manager["http_filters"]
    assert router["name"] == "envoy.filters.http.router"
    assert all(one["disabled"] is True for one in filters)
    for mapper in manager["local_reply_config"]["mappers"]:
        assert ":authority" in str(mapper["filter"]) or "UAEX" in str(mapper["filter"])


def test_every_setting_of_the_page_is_in_a_deploy_file() -> None:
    """Or a reader would look for it in vain."""
    files = "\n".join(
        path.read_text("utf-8")
        for path in deploy_dir().rglob("*")
        if path.suffix in {".yml", ".yaml", ".conf", ".cfg", ""} and path.is_file()
    )
    rows = [line.split(" | ")[1] for line in PAGE.splitlines() if line.startswith("| ")][1:]
    names = [name for row in rows for name in re.findall("`([^`]+)`", row)]
    assert len(names) > 20
    assert [name for name in names if name not in files] == []
