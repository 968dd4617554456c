"""`python broken.py serve`: a sidecar whose decisions on some paths raise or are cancelled."""

import asyncio
from typing import Any

from authsidecar.cli import main
from authsidecar.decision.authorize import Outcome
from authsidecar.decision.model import AccessRequest
from authsidecar.serving import authz

RAISES = "/api/v1/teams/1"
RAISES_LATER = "/api/v1/teams/2"
CANCELLED = "/api/v1/teams/3"


def break_decisions() -> None:
    decide = authz.authorize  # type: ignore[attr-defined]

    async def broken(access: AccessRequest, *others: Any) -> Outcome:
        if access.path == RAISES:
            raise ZeroDivisionError
        if access.path == RAISES_LATER:
            await asyncio.ensure_future(asyncio.sleep(0.01))
            raise ZeroDivisionError
        if access.path == CANCELLED:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            loop.call_later(0.01, future.cancel)
            await future
        return await decide(access, *others)

    authz.authorize = broken  # type: ignore[attr-defined]


if __name__ == "__main__":
    break_decisions()
    main()
