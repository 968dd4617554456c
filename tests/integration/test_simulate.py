"""`simulate` over as many receipts as are kept."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from authsidecar.decision.checks import PERMISSION_MISSING
from authsidecar.decision.model import Deny, Proxy
from authsidecar.observe.receipts import Decided, receipt, write
from authsidecar.store.keys import Keys
from authsidecar.store.receipts import streams
from tests.integration.test_receipts import ORIGIN, STATE, outcome, request
from tests.support.cli import measured

RECEIPTS = 100_000

FILL = """
for n = 0, tonumber(ARGV[1]) - 1 do
  local text = ARGV[3 + n % 2]
  text = string.gsub(text, '"at":%d+', string.format('"at":%d', ARGV[2] + n * 10))
  text = string.gsub(text, '192%.0%.2%.1', '192.0.2.' .. n % 250)
  redis.call('XADD', KEYS[n % 8 + 1], '*', 'r', text)
end
"""
"""Every other one is an admission, and each of 250 addresses has sent as many."""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_hundred_thousand_receipts_are_judged_in_seconds(
    redis_url: str, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """Exactly what the change concerns flips; memory is that of a page."""
    post = request("/api/v1/projects")._replace(method="POST")
    deny = Deny(PERMISSION_MISSING, "the route needs write, the token holds read")
    texts = [
        write(receipt(Decided("ab", Proxy.NGINX, asked, told, "", STATE.current(), 1), ORIGIN))
        for asked, told in ((request(), outcome()), (post, outcome(deny)))
    ]
    file = tmp_path / "said"

    def simulated() -> tuple[dict, float, float]:
        words = ("simulate", "--json", "--allowlist", "192.0.2.0/25", "--last", "24h")
        used = measured(*words, url=redis_url, home=tmp_path, reads=None, writes=file)
        return json.loads(file.read_bytes()), used.cpu_s, used.most_bytes / 1e6

    _, _, least = simulated()
    with redis.Redis.from_url(redis_url) as client:
        start = int(time.time() * 1000) - RECEIPTS * 10
        client.eval(FILL, 8, *streams(Keys())[:8], RECEIPTS, start, *texts)
    said, cpu_s, most = simulated()
    tell(f"simulate: {RECEIPTS} receipts, {cpu_s:.1f} s of CPU, {most - least:.0f} MB")
    assert said["judged"] == RECEIPTS
    flips = {(one["would_be"], one["code"]): one["receipts"] for one in said["flips"]}
    assert flips == {("refused", "address_not_allowed"): RECEIPTS // 2 * 61 // 125}
    assert cpu_s < 20
    assert most - least < 40
