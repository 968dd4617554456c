"""Every page of the console, in the order of the navigation."""

from typing import Final

from authsidecar.serving.console.page import ConsolePage
from authsidecar.serving.console.pages import (
    access,
    ask,
    audit,
    decisions,
    limits,
    overview,
    tokens,
)

PAGES: Final[tuple[ConsolePage, ...]] = (
    overview.PAGE,
    decisions.PAGE,
    tokens.PAGE,
    access.PAGE,
    limits.PAGE,
    ask.PAGE,
    audit.PAGE,
)
