"""Signing in, by a link that works once or by a management key; and signing out."""

import re
from typing import Final

from aiohttp import web
from multidict import MultiMapping

from authsidecar.serving.console import BASE
from authsidecar.serving.console.page import is_csrf_token
from authsidecar.serving.console.rendering import render
from authsidecar.serving.manage.access import Access, BadKey
from authsidecar.serving.manage.operations import NotDoneError, Sidecar
from authsidecar.store.console_sessions import ConsoleSessions, SignedIn
from authsidecar.store.management_keys import Scope

_PAGE: Final = re.compile(r"/[A-Za-z0-9/_-]{0,200}")
"""Where signing in may lead, below /console."""


class SignIn:
    """Answers what nobody need be signed in for."""

    def __init__(self, sidecar: Sidecar, access: Access, sessions: ConsoleSessions) -> None:
        """Nothing is sent yet."""
        self._sidecar = sidecar
        self._access = access
        self._sessions = sessions

    async def answer(
        self,
        request: web.Request,
        form: MultiMapping[str],
        session: SignedIn | None,
        secret: str,
    ) -> web.StreamResponse | None:
        """The answer to what is about signing in or out; None: it is about something else.

        Args:
            request: what was sent.
            form: its fields, of a page of ours.
            session: who is signed in.
            secret: the session's.
        """
        match request.method, request.path.removeprefix(BASE):
            case "GET", "/sign-in":
                # A link is only used by the button: a preview of it would use it up.
                return _form(request, link=request.query.get("link", ""))
            case "POST", "/sign-in":
                return await self._signed_in(request, form, secret)
            case "POST", "/sign-out":
                if session is not None and not is_csrf_token(form.get("csrf"), secret):
                    raise NotDoneError(403, "the form is not of this session: load its page again")
                await self._sessions.end(secret)
                answer = _moved("/sign-in")
                answer.del_cookie(cookie_name(request), path=_cookie_path(request))
                return answer
            case _:
                return None

    @staticmethod
    def wanted(request: web.Request) -> web.StreamResponse:
        """The answer to who wants a page and is not signed in."""
        page = request.path.removeprefix(BASE)
        return _moved(f"/sign-in?next={page}" if _PAGE.fullmatch(page) else "/sign-in")

    async def _signed_in(
        self, request: web.Request, form: MultiMapping[str], before: str
    ) -> web.StreamResponse:
        link, key = form.get("link", ""), form.get("key", "").strip()
        found = await (self._by_link(request, link) if link else self._by_key(request, key))
        if isinstance(found, BadKey):
            return _form(request, wrong=found.why, status=found.status)
        if before:
            await self._sessions.end(before)
        secret = await self._sessions.begin(found, request.remote or "?")
        page = form.get("next", "")
        answer = _moved(page if _PAGE.fullmatch(page) else "")
        answer.set_cookie(
            cookie_name(request),
            secret,
            path=_cookie_path(request),
            secure=request.secure,
            httponly=True,
            samesite="Strict",
        )
        return answer

    async def _by_link(self, request: web.Request, link: str) -> SignedIn | BadKey:
        if (slowed := self._access.slowed(request)) is not None:
            return slowed
        found = await self._sessions.use_link(link)
        if found is None:
            self._access.failed(request)
            return BadKey(
                401,
                "this link was used already, or is older than five minutes; "
                "`authsidecar console` prints another one",
            )
        return found

    async def _by_key(self, request: web.Request, key: str) -> SignedIn | BadKey:
        if not key:
            return BadKey(422, "a management key is needed; `authsidecar key create` makes one")
        found = await self._access.proven(key, request, Scope.READ)
        if isinstance(found, BadKey):
            return found
        return SignedIn(f"key {found.id} ({found.name})", found.scope, found.id)


def cookie_name(request: web.Request) -> str:
    """What the session's cookie is called; browsers keep `__Host-` to this very host, over TLS."""
    return "__Host-authsidecar" if request.secure else "authsidecar-console"


def _cookie_path(request: web.Request) -> str:
    return "/" if request.secure else BASE  # `__Host-` takes no other


def _form(
    request: web.Request, *, link: str = "", wrong: str = "", status: int = 200
) -> web.Response:
    page = request.query.get("next", "")
    body = render(
        "sign_in.html",
        title="Sign in",
        link=link,
        wrong=wrong,
        next=page if _PAGE.fullmatch(page) else "",
    )
    return web.Response(status=status, body=body.encode("utf-8"), content_type="text/html")


def _moved(path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": BASE + path})
