"""A short name for a configuration: the same for the same one, without anything of its secrets."""

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final

from authsidecar.config.catalogue import SETTINGS, Path
from authsidecar.config.sections import Settings

DIGITS: Final = 12


def digest(settings: Settings, more: Iterable[str] = ()) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of all settings that can hold no secret.

    Args:
        settings: the configuration.
        more: what else was read for it, from the operator's files.
    """
    plain = settings.model_dump(mode="json")
    shown = {
        setting.key: _value(plain, setting.path)
        for setting in SETTINGS.values()
        if not setting.private
    }
    text = "\n".join([json.dumps(shown, sort_keys=True, default=str), *more])
    return sha256(text.encode()).hexdigest()[:DIGITS]


def _value(found: Any, path: Path) -> Any:
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found
