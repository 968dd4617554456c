"""Somebody who has a sidecar's console open, over its own port."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from urllib.parse import urlencode

from tests.support.cli import invoke
from tests.support.sidecar import SidecarProcess


@dataclass
class Operator:
    """Somebody who is signed in."""

    connection: HTTPConnection
    headers: dict[str, str]
    csrf: str = ""

    def get(self, path: str, **headers: str) -> tuple[int, str, float]:
        """Status, text, and seconds that a page below /console took."""
        return self._ask("GET", path, None, headers)

    def post(self, path: str, fields: Mapping[str, str]) -> tuple[int, str, float]:
        """The same of a form that is sent."""
        form = urlencode({**fields, "csrf": self.csrf})
        return self._ask("POST", path, form, {"Content-Type": "application/x-www-form-urlencoded"})

    def _ask(
        self, method: str, path: str, form: str | None, headers: Mapping[str, str]
    ) -> tuple[int, str, float]:
        begun = time.perf_counter()
        self.connection.request(method, f"/console{path}", form, {**self.headers, **headers})
        answer = self.connection.getresponse()
        text = answer.read().decode()
        if (cookie := answer.headers.get("Set-Cookie")) is not None:
            self.headers["Cookie"] = cookie.partition(";")[0]
        return answer.status, text, time.perf_counter() - begun


@contextmanager
def signed_in(sidecar: SidecarProcess) -> Iterator[Operator]:
    """Somebody who has followed the link that `authsidecar console` prints."""
    address = f"127.0.0.1:{sidecar.management_port}"
    url = sidecar.environ["AUTHSIDECAR_REDIS__URL"]
    said = invoke("console", "--quiet", url=url, MANAGEMENT__ADDRESS=address)
    assert said.code == 0, said.err
    connection = HTTPConnection("127.0.0.1", sidecar.management_port, timeout=30)
    own = {"Origin": f"http://{address}", "Sec-Fetch-Site": "same-origin"}
    found = Operator(connection, own)
    try:
        status, text, _ = found.post("/sign-in", {"link": said.out.strip().rpartition("=")[2]})
        assert status == 303, text
        (found.csrf,) = set(
            re.findall(r'name="csrf" value="([0-9a-f]{64})"', found.get("/audit")[1])
        )
        yield found
    finally:
        connection.close()
