"""The way of a request to a page: how it came, from which site, whose it is, what it may do."""

import asyncio
from collections.abc import Collection
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from multidict import MultiDict, MultiMapping
from redis.exceptions import RedisError

from authsidecar.observe.log import Log
from authsidecar.serving.console import BASE
from authsidecar.serving.console.headers import HEADERS
from authsidecar.serving.console.page import (
    READ_ONLY,
    ConsolePage,
    PageRoute,
    Visit,
    is_csrf_token,
    take_back,
)
from authsidecar.serving.console.pages import PAGES
from authsidecar.serving.console.rendering import render, static_files
from authsidecar.serving.console.sign_in import SignIn, cookie_name
from authsidecar.serving.manage.access import Access
from authsidecar.serving.manage.api import explained
from authsidecar.serving.manage.operations import NotDoneError, Sidecar
from authsidecar.store.console_sessions import ConsoleSessions, SignedIn
from authsidecar.store.management_keys import ManagementKeys, Scope

MOST_FIELDS: Final = 500
"""Fields of the largest form."""


class Gate:
    """Answers every request below /console."""

    def __init__(
        self,
        sidecar: Sidecar,
        access: Access,
        log: Log,
        hosts: Collection[str],
        pages: tuple[ConsolePage, ...] = PAGES,
    ) -> None:
        """Nothing is sent yet.

        Args:
            sidecar: what operations work with.
            access: judges management keys.
            log: told of defects.
            hosts: names by which browsers may reach it, beside localhost and addresses.
            pages: what it shows.
        """
        self._sidecar = sidecar
        self._log = log
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self._pages = pages
        self._sessions = ConsoleSessions(sidecar.client, sidecar.keys)
        self._sign_in = SignIn(sidecar, access, self._sessions)
        self._router = web.UrlDispatcher()
        self._routes: dict[web.AbstractRoute, PageRoute] = {}
        self._polled = {
            BASE + route.path for page in pages for route in page.routes if route.polled
        }
        undo = PageRoute("POST", "/undo", take_back)
        for route in (undo, *(route for page in pages for route in page.routes)):
            path = BASE if route.path == "/" else BASE + route.path
            added = self._router.add_route(route.method, path, _never)
            self._routes[added] = route
        self._router.freeze()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The answer to one request; a failure is a page too."""
        try:
            answer = await self._judged(request)
        except NotDoneError as error:
            answer = _problem(error.status, error.why)
        except (web.HTTPException, ConnectionResetError):
            raise
        except Exception as error:  # noqa: BLE001  # nobody is shown a traceback
            answer = _problem(*explained(error, self._log, request.method + " console"))
        if not answer.prepared:  # a stream has sent its own
            for name, value in HEADERS.items():
                answer.headers.setdefault(name, value)
        return answer

    async def _judged(self, request: web.Request) -> web.StreamResponse:
        if request.transport is None or not is_near(request.transport):
            raise NotDoneError(403, _FAR)
        if not self._is_own(request.headers.get("Host", "")):
            raise NotDoneError(421, _FOREIGN_HOST)
        if request.path == f"{BASE}/":
            return web.Response(status=308, headers={"Location": BASE})
        name = request.path.removeprefix(f"{BASE}/static/")
        if name != request.path:
            return _static(request, name)
        form = await _form(request)
        secret = request.cookies.get(cookie_name(request), "")
        used = request.path not in self._polled
        session = await self._session(secret, used=used) if secret else None
        own = await self._sign_in.answer(request, form, session, secret)
        if own is not None:
            return own
        if session is None:
            if request.method != "GET":
                raise NotDoneError(401, "your session has ended: sign in, and repeat it")
            return self._sign_in.wanted(request)
        return await self._visited(request, session, secret, form)

    async def _visited(
        self, request: web.Request, session: SignedIn, secret: str, form: MultiMapping[str]
    ) -> web.StreamResponse:
        visit = Visit(request, session, secret, self._sidecar, self._pages, form=form)
        try:
            answer = await self._run(visit)
        except NotDoneError as error:
            answer = visit.page("problem.html", status=error.status, why=error.why)
        except (web.HTTPException, ConnectionResetError):
            raise
        except Exception as error:  # noqa: BLE001  # nobody is shown a traceback
            status, why = explained(error, self._log, f"{request.method} console")
            answer = visit.page("problem.html", status=status, why=why)
        if session.said and visit.shown:
            await self._heard(secret)
        return answer

    async def _run(self, visit: Visit) -> web.StreamResponse:
        match = await self._router.resolve(visit.request)
        route = self._routes.get(match.route)
        if match.http_exception is not None or route is None:
            raise NotDoneError(404, "there is no such page")
        posts = visit.request.method != "GET"
        if posts and not is_csrf_token(visit.form.get("csrf"), visit.secret):
            raise NotDoneError(403, "the form is not of this session: load its page again")
        if route.needed is Scope.WRITE and not visit.may_write:
            raise NotDoneError(403, READ_ONLY)
        visit.path = dict(match)
        return await route.run(visit)

    async def _heard(self, secret: str) -> None:
        try:
            await self._sessions.heard(secret)
        except (RedisError, OSError):
            return  # it is told once more

    async def _session(self, secret: str, *, used: bool) -> SignedIn | None:
        """The session that holds; what was made from a key ends with the key."""
        found = await self._sessions.find(secret, used=used)
        if found is None or found.key is None:
            return found
        keys = ManagementKeys(self._sidecar.client, self._sidecar.keys)
        key = await keys.find(found.key)
        if key is None or key.expired(await keys.now()):
            await self._sessions.end(secret)
            return None
        return found

    def _is_own(self, host: str) -> bool:
        """Whether a Host is ours: another site's name may be made to resolve to us."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        name = name.rstrip(".")
        return name == "localhost" or name in self._hosts or _is_address(name)


_FAR: Final = (
    "the console is served over loopback alone as long as the management listener has no "
    "certificate (management.tls_cert_file); from elsewhere, use `ssh -L 4191:127.0.0.1:4191`"
)
_FOREIGN_HOST: Final = (
    "the console is not served under this name; management.console_hosts says which it has"
)


async def _never(_: web.Request) -> web.StreamResponse:
    raise AssertionError  # routes are only matched


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_near(transport: asyncio.BaseTransport) -> bool:
    """Whether what comes over a connection is encrypted, or has never left the machine."""
    if transport.get_extra_info("sslcontext") is not None:
        return True
    here = transport.get_extra_info("sockname")
    if not isinstance(here, tuple):
        return True  # a unix socket
    address = ip_address(str(here[0]).partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _static(request: web.Request, name: str) -> web.StreamResponse:
    found = static_files().get(name)
    if found is None or request.method not in {"GET", "HEAD"}:
        raise NotDoneError(404, "there is no such file")
    kept = request.query.get("v") == found.version
    cache = "public, max-age=31536000, immutable" if kept else "no-cache"
    return web.Response(
        body=found.body,
        content_type=found.content_type,
        charset="utf-8",
        headers={"Cache-Control": cache},
    )


async def _form(request: web.Request) -> MultiMapping[str]:
    """The fields of a form that one of our own pages has sent.

    Raises:
        NotDoneError: it comes from another site, or is no form.
    """
    if request.method in {"GET", "HEAD"}:
        return MultiDict()
    if request.method != "POST":
        raise NotDoneError(405, "pages take GET and POST")
    if not _same_origin(request):
        raise NotDoneError(403, "the form was sent by another site, and nothing was done")
    if request.content_type != "application/x-www-form-urlencoded":
        raise NotDoneError(415, "what was sent is no form")
    try:
        fields = await request.post()
    except web.HTTPRequestEntityTooLarge:
        raise NotDoneError(413, "the form is too large") from None
    except (LookupError, ValueError):
        raise NotDoneError(400, "the form can't be read") from None
    if len(fields) > MOST_FIELDS:
        raise NotDoneError(413, f"the form has more than {MOST_FIELDS} fields")
    return MultiDict((name, value) for name, value in fields.items() if isinstance(value, str))


def _same_origin(request: web.Request) -> bool:
    """Whether a browser says that a page of ours has sent it; every browser of today does."""
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is None and origin is None:
        return False
    if site not in {None, "same-origin"}:
        return False
    return origin is None or urlsplit(origin).netloc.lower() == request.headers["Host"].lower()


def _problem(status: int, why: str) -> web.Response:
    """A page that nobody need be signed in for."""
    body = render("outside.html", title="Not done", why=why)
    return web.Response(status=status, body=body.encode("utf-8"), content_type="text/html")
