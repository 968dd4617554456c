"""Odd targets, methods and headers: what is read in one way only, or refused."""

from authsidecar.decision.model import Proxy
from tests.e2e.scenarios.table import (
    AMBIGUOUS,
    OWN_400,
    OWN_AMBIGUOUS,
    TEAMS,
    UNAUTHENTICATED,
    UNREADABLE,
    ByProxy,
    Refused,
    Runs,
    Scenario,
    permission,
)
from tests.support import world as at

PREFLIGHT = ("Origin: https://app.test", "Access-Control-Request-Method: PATCH")

TARGETS = (
    Scenario("an escape that means nothing", "P7", TEAMS, target="/api/v1/%74eams", token=at.READ),
    Scenario("an escaped prefix", "P7; B3", TEAMS, target="/%61pi/v1/teams", token=at.READ),
    Scenario("a trailing slash", "P7", TEAMS, target="/api/v1/teams/", token=at.READ),
    Scenario(
        "a name of another script",
        "P7",
        Runs("GET /api/v1/projects/{uuid}/{environment_name_or_uuid}"),
        target="/api/v1/projects/u1/pr%C3%BCfung%231",
        token=at.READ,
    ),
    Scenario("a query", "P7; B10", TEAMS, target="/api/v1/teams?a=1&b=%2F", token=at.READ),
    Scenario(
        "an escaped slash",
        "P7; B2",
        OWN_AMBIGUOUS,
        target="/api%2Fv1%2Fteams",
        token=at.READ,
        but={Proxy.TRAEFIK: AMBIGUOUS, Proxy.ENVOY: AMBIGUOUS},
    ),
    Scenario(
        "a doubled slash",
        "P7",
        OWN_AMBIGUOUS,
        target="//api/v1/teams",
        token=at.READ,
        but={Proxy.TRAEFIK: TEAMS, Proxy.ENVOY: TEAMS, Proxy.HAPROXY: TEAMS},
    ),
    Scenario(
        "dot segments",
        "P7",
        OWN_AMBIGUOUS,
        target="/login/../api/v1/teams",
        token=at.READ,
        but={Proxy.TRAEFIK: TEAMS, Proxy.ENVOY: TEAMS, Proxy.HAPROXY: TEAMS},
    ),
    Scenario(
        "escaped dot segments",
        "P7",
        OWN_AMBIGUOUS,
        target="/login/%2e%2e/api/v1/teams",
        token=at.READ,
        but={Proxy.TRAEFIK: TEAMS, Proxy.ENVOY: TEAMS, Proxy.HAPROXY: TEAMS},
    ),
    Scenario(
        "an escape of an escape",
        "P7",
        AMBIGUOUS,
        target="/api/v1/%2574eams",
        token=at.READ,
    ),
    Scenario(
        "a NUL",
        "P7",
        AMBIGUOUS,
        target="/api/v1/teams%00",
        token=at.READ,
        but={
            Proxy.NGINX: UNREADABLE,
            Proxy.ENVOY: UNREADABLE,
            Proxy.HAPROXY: OWN_AMBIGUOUS,
        },
    ),
    Scenario(
        "an escaped question mark",
        "P7",
        AMBIGUOUS,
        target="/api/v1/teams%3Fx=1",
        token=at.READ,
    ),
    Scenario("a parameter", "P7", AMBIGUOUS, target="/api/v1/teams;x=1", token=at.READ),
    Scenario(
        "a backslash",
        "P7",
        OWN_AMBIGUOUS,
        target="/api\\v1\\teams",
        token=at.READ,
        but={Proxy.TRAEFIK: AMBIGUOUS, Proxy.ENVOY: TEAMS},
    ),
    Scenario(
        "a fragment",
        "P5; P7",
        OWN_AMBIGUOUS,
        target="/api/v1/teams#x",
        token=at.READ,
        but={Proxy.TRAEFIK: OWN_400, Proxy.ENVOY: UNREADABLE, Proxy.HAPROXY: OWN_400},
    ),
    Scenario("a line feed", "P7", AMBIGUOUS, target="/api/v1/teams%0a", token=at.READ),
    Scenario(
        "another site in the target",
        "P7",
        TEAMS,
        target="http://evil.test/api/v1/teams",
        token=at.READ,
        but={
            Proxy.TRAEFIK: ByProxy(404),
            Proxy.CADDY: ByProxy(200),  # empty: no site of that name
            Proxy.ENVOY: ByProxy(404),
            Proxy.HAPROXY: OWN_400,
        },
    ),
    Scenario(
        "a target of 20 KB",
        "C0; P14; P19",
        Refused(414, "target_too_long"),
        target=f"/api/v1/{'x' * 20_000}",
        token=at.READ,
        but={Proxy.NGINX: ByProxy(414, "target_too_long"), Proxy.HAPROXY: OWN_400},
    ),
)

OVERRIDES = Refused(400, "method_override")
NOT_ALLOWED = Refused(405, "method_not_allowed")

METHODS = (
    Scenario("HEAD", "P17", Runs("HEAD /api/v1/teams"), "HEAD", token=at.READ),
    Scenario("HEAD needs what GET needs", "P17", permission("read"), "HEAD", token=at.WRITE),
    Scenario(
        "a CORS preflight",
        "P16",
        Runs("OPTIONS", None, 204, counted=False),
        "OPTIONS",
        lines=PREFLIGHT,
    ),
    Scenario(
        "OPTIONS that is no preflight",
        "P16",
        Refused(404, "route_unknown", "Not found."),
        "OPTIONS",
    ),
    Scenario(
        "a preflight with a token is none",
        "P16",
        Refused(404, "route_unknown", "Not found."),
        "OPTIONS",
        lines=PREFLIGHT,
        token=at.READ,
    ),
    Scenario(
        "TRACE",
        "C0; P17",
        NOT_ALLOWED,
        "TRACE",
        token=at.READ,
        but={
            Proxy.NGINX: ByProxy(405, "method_not_allowed"),
            Proxy.CADDY: ByProxy(405, "method_not_allowed"),
            Proxy.HAPROXY: ByProxy(405, "method_not_allowed"),
        },
    ),
    Scenario(
        "a made-up method",
        "C0; P17",
        NOT_ALLOWED,
        "FOO",
        token=at.READ,
        but={Proxy.ENVOY: UNREADABLE},
    ),
    Scenario(
        "a method in lower case",
        "C0; P17",
        NOT_ALLOWED,
        "get",
        token=at.READ,
        but={Proxy.NGINX: UNREADABLE, Proxy.ENVOY: UNREADABLE},
    ),
    Scenario(
        "a method override in a header",
        "B9",
        OVERRIDES,
        "POST",
        "/api/v1/projects",
        ("X-HTTP-Method-Override: DELETE",),
        token=at.WRITE,
    ),
    Scenario(
        "a method override in the query",
        "B9",
        OVERRIDES,
        "POST",
        "/api/v1/projects?%5fmethod=DELETE",
        token=at.WRITE,
    ),
    Scenario(
        "a method override in the body, where no POST route is",
        "B9",
        Refused(404, "route_unknown", "Not found."),
        "POST",
        lines=("Content-Type: application/x-www-form-urlencoded",),
        token=at.READ,
        body=b"_method=GET",
    ),
)

HEADERS = (
    Scenario(
        "the client's own identity",
        "P2; B7",
        TEAMS,
        lines=tuple(
            f"{name}: evil"
            for name in (
                *("X-Auth-User-Id", "x-auth-team-id", "X-AUTH-TEAM-ROLE", "X-Auth-Token-Id"),
                *("X-Auth-Permissions", "X-Auth-Read-Sensitive", "X-Auth-Client-Ip"),
                "X-Auth-Decision-Id",
            )
        ),
        token=at.READ,
    ),
    Scenario(
        "the client's own identity on a public route",
        "P2; B7",
        Runs("GET /api/health", None),
        target="/api/health",
        lines=("X-Auth-User-Id: 0", "X-Auth-Permissions: root"),
    ),
    Scenario(
        "an identity header with underscores",
        "P1; P9",
        TEAMS,
        lines=("X_Auth_User_Id: 0",),
        token=at.READ,
    ),
    Scenario(
        "an identity header with dots",
        "P1; P9",
        TEAMS,
        lines=("X.Auth.User.Id: 0",),
        token=at.READ,
    ),
    Scenario(
        "X_Forwarded_Proto",
        "P9",
        TEAMS,
        lines=("X_Forwarded_Proto: https",),
        token=at.READ,
    ),
    Scenario(
        "a forwarded request that is not the real one",
        "P3; P4; B4",
        permission("write"),
        "POST",
        "/api/v1/projects",
        (
            "X-Forwarded-Uri: /api/health",
            "X-Forwarded-Uri: /api/v1/teams",
            "X-Forwarded-Method: GET",
            "X-Forwarded-Prefix: /api/health",
            "X-Forwarded-Port: 4190",
            "X-Original-Url: /api/health",
            "X-Original-Method: GET",
            "Forwarded: for=198.51.100.7",
        ),
        token=at.READ,
    ),
    Scenario(
        "empty forwarded headers",
        "P4; B4",
        permission("write"),
        "POST",
        "/api/v1/projects",
        ("X-Forwarded-Uri: ", "X-Forwarded-Method: ", "X-Forwarded-For: "),
        token=at.READ,
    ),
    Scenario(
        "our headers named in Connection",
        "P8; B8",
        TEAMS,
        lines=(
            (
                "Connection: close, X-Forwarded-Uri, x-forwarded-for, X-Forwarded-Method, "
                "X-Auth-User-Id, X-Auth-Token-Id"
            ),
        ),
        token=at.READ,
        but={Proxy.ENVOY: UNREADABLE},
    ),
    Scenario(
        "Upgrade: h2c",
        "P18",
        TEAMS,
        lines=("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
        token=at.READ,
    ),
    Scenario("cookies of 12 KB", "P19", TEAMS, lines=(f"Cookie: a={'x' * 12_000}",), token=at.READ),
    Scenario(
        "a hundred and five headers",
        "P19",
        TEAMS,
        lines=tuple(f"X-More-{number}: x" for number in range(105)),
        token=at.READ,
        but={Proxy.ENVOY: ByProxy(431, "headers_too_large"), Proxy.HAPROXY: OWN_400},
    ),
    Scenario(
        "an Authorization of 12 KB",
        "P19",
        Refused(401, "token_malformed", UNAUTHENTICATED),
        lines=(f"Authorization: Bearer 1|{'x' * 12_000}",),
    ),
    Scenario(
        "an Authorization of 40 KB",
        "C0; P14; P19",
        Refused(431, "headers_too_large"),
        lines=(f"Authorization: Bearer 1|{'x' * 40_000}",),
        but={
            Proxy.NGINX: ByProxy(431, "headers_too_large"),
            Proxy.CADDY: ByProxy(431),
            Proxy.HAPROXY: OWN_400,
        },
    ),
)
