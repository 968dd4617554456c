"""The management API of a sidecar, as a script uses it."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.cli import invoke
from tests.support.sidecar import Answer, SidecarProcess

PROBLEM = "application/problem+json"


def key(url: str, scope: str, name: str = "test") -> str:
    """A management key, made by the command line."""
    words = ("key", "create", "--name", name, "--scope", scope, "--json")
    return invoke(*words, url=url).json["key"]


@dataclass(frozen=True)
class Api:
    """A sidecar's API with two keys.

    Attributes:
        sidecar: whose.
        url: its Redis.
        reading: a key that may read.
        writing: a key that may write.
    """

    sidecar: SidecarProcess
    url: str
    reading: str
    writing: str

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = "",
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request below /manage/v1, with the writing key unless another is given."""
        port = self.sidecar.management_port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        fields = dict(headers or {})
        shown = self.writing if key == "" else key
        if shown is not None:
            fields["Authorization"] = f"Bearer {shown}"
        data = raw
        if body is not None:
            data = json.dumps(body).encode()
        if data is not None:
            fields.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, f"/manage/v1{path}", body=data, headers=fields)
            answer = connection.getresponse()
            return Answer(answer.status, tuple(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def all(self, path: str, limit: int = 50) -> list[Any]:
        """Every item of a list, page by page."""
        items: list[Any] = []
        joint = "&" if "?" in path else "?"
        following = f"{path}{joint}limit={limit}"
        while True:
            page = self.ask("GET", following)
            assert page.status == 200, page.body
            items += page.json["items"]
            if page.json["next"] is None:
                return items
            following = f"{path}{joint}limit={limit}&cursor={page.json['next']}"
