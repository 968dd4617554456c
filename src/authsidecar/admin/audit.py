"""Use cases of the audit: find a record by the id that somebody typed."""

import re
from typing import Final

from authsidecar.store.audit import Record, Trail

_ID: Final = re.compile(r"[0-9]{1,15}-[0-9]{1,10}")


async def find_record(trail: Trail, record: str) -> Record | None:
    """One record; None if there is none, or the text is no id."""
    return await trail.find(record) if _ID.fullmatch(record) else None
