"""The log line of a decision: what is the same for all requests of its kind is rendered once."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from authsidecar.decision.model import Address, Deny, Proxy, TokenRecord, Verdict

_REQUEST_ID: Final = re.compile(r"[0-9A-Fa-f-]{16,64}")
"""Hexadecimal or a UUID, as the four proxies make them. Anything else may be what a client put
there behind a proxy that does not overwrite it, a token for example, and is not written."""


class DecisionLine:
    """What the lines of decisions on readable requests share."""

    __slots__ = ("_client", "_end", "_method", "_middle", "_proxy", "_record", "_route", "_verdict")

    def __init__(
        self,
        verdict: Verdict,
        *,
        proxy: Proxy,
        method: str,
        route: str | None,
        client: Address,
        record: TokenRecord | None,
    ) -> None:
        """Nothing is rendered yet.

        Args:
            verdict: what was decided.
            proxy: the endpoint that was asked.
            method: the client's.
            route: the template that matched, or None.
            client: the address that was judged.
            record: the authenticated token, or None.
        """
        self._proxy = proxy
        self._verdict = verdict
        self._method = method
        self._route = route
        self._client = client
        self._record = record
        self._middle = ""
        self._end = ""

    def fields(self, decision_id: str, request_id: str | None, seconds: float) -> dict[str, object]:
        """The fields of one line.

        Args:
            decision_id: names the decision.
            request_id: the proxy's id of the request, or None.
            seconds: how long it took.
        """
        record = self._record
        return {
            "decision_id": decision_id,
            **decided(self._proxy, self._verdict),
            "method": self._method,
            "route": self._route,
            "client": str(self._client),
            "request_id": _plain(request_id),
            "user": record.user if record else None,
            "team": record.team if record else None,
            "token": record.token if record else None,
            "ms": round(seconds * 1000, 3),
        }

    def own(self, decision_id: str, request_id: str | None, seconds: float) -> str:
        """The same as a part of a JSON object, from within the id's quotes on: for `texts`."""
        if not self._middle:
            self._render()
        known = None if request_id is None else _plain(request_id)
        quoted = "null" if known is None else f'"{known}"'
        # Formatted, not rounded first: that costs as much as the rest of the line.
        return f"{decision_id}{self._middle}{quoted}{self._end}{seconds * 1000:.3f}"

    def _render(self) -> None:
        """Render what is shared, as json.dumps does `fields`."""
        deny = self._verdict if isinstance(self._verdict, Deny) else None
        if deny is None:
            verdict = '"outcome": "allow", "status": 200, "code": null, "detail": null'
        else:
            verdict = (
                f'"outcome": "deny", "status": {deny.reason.status}, '
                f'"code": "{deny.reason.code}", "detail": {json.dumps(deny.detail)}'
            )
        self._middle = _shared(
            f'", "proxy": "{self._proxy.value}", {verdict}, "method": "{self._method}", '
            f'"route": {_quoted(self._route)}, "client": "{self._client}", "request_id": '
        )
        record = self._record
        if record is None:
            self._end = ', "user": null, "team": null, "token": null, "ms": '
        else:
            team = "null" if record.team is None else record.team
            self._end = f', "user": {record.user}, "team": {team}, "token": {record.token}, "ms": '


def texts(time: str, own: Sequence[str]) -> str:
    """Lines of decisions as JSON objects, with line ends between them.

    Args:
        time: when they are written.
        own: what each has of its own, by `DecisionLine.own`; at least one.
    """
    start = f'{{"time": "{time}{_START}'
    between = f"}}\n{start}"
    return f"{start}{between.join(own)}}}"


_START: Final = '", "level": "info", "event": "decision", "decision_id": "'

_quoted = lru_cache(1024)(json.dumps)


@lru_cache(1024)
def _shared(text: str) -> str:
    """The same text, as one object for all: it stays in the processor's caches."""
    return text


def _plain(request_id: str | None) -> str | None:
    """The proxy's id of a request as it may be written, or None."""
    return request_id if request_id and _REQUEST_ID.fullmatch(request_id) else None


def decided(proxy: Proxy | None, verdict: Verdict) -> Mapping[str, object]:
    """The fields that every decision's line has."""
    deny = verdict if isinstance(verdict, Deny) else None
    return {
        "proxy": None if proxy is None else proxy.value,
        "outcome": "allow" if deny is None else "deny",
        "status": 200 if deny is None else deny.reason.status,
        "code": None if deny is None else deny.reason.code,
        "detail": None if deny is None else deny.detail,
    }
