"""`python stuck_switch.py serve`: a sidecar that cannot set the API switch."""

from authsidecar.cli import main
from authsidecar.decision.authorize import StoreError
from authsidecar.run import parts


async def _stuck(*_: object) -> None:
    raise StoreError("other", "the switch was not set")


if __name__ == "__main__":
    parts._switch = _stuck
    main()
