"""What a probe leaves behind at the client and at an echo behind the proxy."""

import json
from dataclasses import dataclass
from typing import Any, Final

from authsidecar.decision.proxies.headers import IDENTITY
from authsidecar.serving.doctor_probe import Headers

MARK: Final = "authsidecar_echo"
"""The key by which the doctor knows an answer of `doctor echo`."""


@dataclass(frozen=True, slots=True)
class Echoed:
    """A request as it reached the echo behind the proxy."""

    method: str
    target: str
    headers: Headers

    def values(self, name: str) -> list[str]:
        """All values under exactly this name, in any case of its letters."""
        return [value for found, value in self.headers if found == name.lower()]

    def claims(self) -> list[str]:
        """Every name that PHP would read as one of the sidecar's, as it was spelled."""
        ours = {name.lower() for name in IDENTITY}
        folded = [(name, name.replace("_", "-").replace(".", "-")) for name, _ in self.headers]
        return sorted({name for name, plain in folded if plain in ours})


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client of the proxy was answered."""

    status: int
    headers: Headers
    body: bytes

    def values(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for found, value in self.headers if found == name.lower()]

    def document(self) -> dict[str, Any]:
        """The body, if it is a JSON object; else an empty one."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def echoed(self) -> Echoed | None:
        """What the echo saw, if it was the echo that answered."""
        document = self.document()
        if MARK not in document:
            return None
        headers = tuple((name, value) for name, value in document["headers"])
        return Echoed(document["method"], document["target"], headers)
