"""The listeners: the authz listener that proxies ask, and the management listener."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web

    from authsidecar.serving.authz import AuthzServer


def application(authz: "AuthzServer") -> "web.Application":
    """A plain aiohttp application that answers all that the authz listener answers.

    What a listener holds around it (limits, peers that are refused unread) is the embedder's.
    """
    return authz.application()
