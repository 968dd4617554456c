"""The lines that operators uncomment behind a CDN: what they open, and what they must not."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import aiohttp
import pytest

from authsidecar.decision.model import AccessRequest, Proxy
from authsidecar.demo import proxies
from tests.support.proxies import judged, stage

CDN = "127.0.0.0/8"
UNCOMMENTED = {
    Proxy.TRAEFIK: {
        "traefik.yml": {
            '# forwardedHeaders: {trustedIPs: ["192.0.2.0/24"]}': (
                f'forwardedHeaders: {{trustedIPs: ["{CDN}"]}}'
            )
        }
    },
    Proxy.NGINX: {
        "nginx.conf": {
            "# set_real_ip_from 192.0.2.0/24;": f"set_real_ip_from {CDN};",
            "# real_ip_header": "real_ip_header",
            "# real_ip_recursive": "real_ip_recursive",
        }
    },
    Proxy.CADDY: {
        "Caddyfile": {
            "# servers {": "servers {",
            "# \ttrusted_proxies static 192.0.2.0/24": f"trusted_proxies static {CDN}",
            "# \ttrusted_proxies_strict\n\t# }": "trusted_proxies_strict\n\t}",
        }
    },
    Proxy.ENVOY: {},
    Proxy.HAPROXY: {
        "haproxy.cfg": {
            "# acl from_cdn src 192.0.2.0/24": f"acl from_cdn src {CDN}",
            "# http-request set-src": "http-request set-src",
        }
    },
}


@pytest.mark.parametrize("proxy", list(UNCOMMENTED))
async def test_behind_a_cdn_only_the_client_address_is_believed(proxy, tmp_path, monkeypatch):
    """The CDN's last hop is the client; no other X-Forwarded-* of the client's gets through."""
    recipe = proxies.RECIPES[proxy]

    def files(places):
        more = UNCOMMENTED[proxy]
        return {
            name: {**given, **more.get(name, {})} for name, given in recipe.files(places).items()
        }

    monkeypatch.setattr(
        proxies, "RECIPES", {**proxies.RECIPES, proxy: replace(recipe, files=files)}
    )
    headers = {
        "Authorization": "Bearer 67|s",
        "X-Forwarded-For": "6.6.6.6, 203.0.113.9",
        "X-Forwarded-Uri": "/api/v1/health",
        "X-Forwarded-Method": "OPTIONS",
        "X-Forwarded-Host": "evil.test",
        "X-Real-Ip": "6.6.6.6",
    }
    async with stage(proxy, tmp_path) as it, aiohttp.ClientSession() as http:
        async with http.get(f"{it.url}/api/v1/teams", headers=headers) as answer:
            assert answer.status == 200
        [asked] = it.authz.asked
        [seen] = it.backend.seen
    # Envoy says the host's own address where the peer is loopback.
    own = asked.headers["X-Forwarded-For"].rpartition(",")[2].strip()
    hops = [ip_network(CDN), *([ip_network(own)] if proxy is Proxy.ENVOY else [])]
    access = judged(proxy, asked, hops)
    assert isinstance(access, AccessRequest)
    assert (access.method, access.path) == ("GET", "/api/v1/teams")
    assert access.client == ip_address("203.0.113.9")
    assert "evil.test" not in str(asked.headers)
    assert "X-Forwarded-Uri" not in seen.headers
