"""The line to change, by cure and proxy: each stands word for word in deploy/<proxy>/."""

from collections.abc import Mapping
from typing import Final

from authsidecar.decision.model import Proxy

_TRAEFIK_CLEAN: Final = "[authsidecar-readable, authsidecar-clean, authsidecar, "
_TRAEFIK_RULE: Final = "(PathPrefix(`/api`) || PathPrefix(`/mcp`) || PathPrefix(`/index.php`)"
_TRAEFIK: Final = {
    "asking": 'address: "http://127.0.0.1:4190/authz/traefik"',
    "api": _TRAEFIK_RULE,
    "mcp": _TRAEFIK_RULE,
    "index-php": _TRAEFIK_RULE,
    "spelling": "# sanitizePath stays at its default, true",
    "encoded-slash": "PathRegexp(`(?i)%2f|%5c`)",
    "double-slash": "# sanitizePath stays at its default, true",
    "forwarded-uri": _TRAEFIK_CLEAN,
    "forwarded-method": _TRAEFIK_CLEAN,
    "forwarded-for": 'forwardedHeaders: {trustedIPs: ["192.0.2.0/24"]}',
    "name": "# encodedCharacters stay at their defaults",
    "foreign-headers": "authRequestHeaders:",
    "connection": "# Safe from Traefik 3.7.13 on",
    "body": "forwardBody: false",
    "authorization": "- Authorization",
    "content-type": "- Content-Type",
    "preflight": "- Access-Control-Request-Method",
    "method-override": "- X-HTTP-Method-Override",
    "large-header": "authRequestHeaders:",
    "denial": _TRAEFIK_CLEAN,
    "denial-401": _TRAEFIK_CLEAN,
    "denial-404": _TRAEFIK_CLEAN,
    "denial-429": _TRAEFIK_CLEAN,
    "denial-503": _TRAEFIK_CLEAN,
    "identity": 'authResponseHeadersRegex: "^X-Auth-"',
    "identity-outside": "middlewares: [authsidecar-strip-identity, authsidecar-strip-override]",
    "alias": "aliasHeadersStrategy: delete",
    "alias-dot": "aliasHeadersStrategy: delete",
    "same-target": _TRAEFIK_CLEAN,
    "forwarded-host": 'X-Forwarded-Host: ""',
    "websocket": "service: coolify",
}

_NGINX_URI: Final = "proxy_set_header X-Forwarded-Uri               $request_uri;"
_NGINX_DENIED: Final = "error_page 403 = @authsidecar_denied;"
_NGINX: Final = {
    "asking": "auth_request /_authsidecar;",
    "api": "location ^~ /api { include authsidecar-protected.conf; }",
    "mcp": "location ^~ /mcp {",
    "index-php": "location ^~ /index.php { include authsidecar-protected.conf; }",
    "spelling": "if ($request_uri ~* ",
    "encoded-slash": "if ($request_uri ~* ",
    "double-slash": "if ($request_uri ~* ",
    "forwarded-uri": _NGINX_URI,
    "forwarded-method": "proxy_set_header X-Forwarded-Method            $request_method;",
    "forwarded-for": "proxy_set_header X-Forwarded-For               $remote_addr;",
    "name": _NGINX_URI,
    "foreign-headers": "proxy_pass_request_headers off;",
    "connection": "proxy_pass_request_headers off;",
    "request-id": "proxy_set_header X-Authz-Request-Id            $request_id;",
    "body": "proxy_pass_request_body off;",
    "authorization": "proxy_set_header Authorization                 $http_authorization;",
    "content-type": "proxy_set_header Content-Type                  $http_content_type;",
    "preflight": (
        "proxy_set_header Access-Control-Request-Method $http_access_control_request_method;"
    ),
    "method-override": (
        "proxy_set_header X-HTTP-Method-Override        $http_x_http_method_override;"
    ),
    "large-header": "large_client_header_buffers 4 16k;",
    "denial": _NGINX_DENIED,
    "denial-401": "error_page 401 = @authsidecar_401;",
    "denial-404": "if ($authz_status = 404) { return 404 $authz_body; }",
    "denial-429": "if ($authz_status = 429) { return 429 $authz_body; }",
    "denial-503": "if ($authz_status = 503) { return 503 $authz_body; }",
    "identity": "proxy_set_header X-Auth-User-Id         $authz_user_id;",
    "identity-outside": 'proxy_set_header X-Auth-User-Id         "";',
    "alias": "underscores_in_headers off",
    "alias-dot": "ignore_invalid_headers on",
    "same-target": "proxy_pass http://coolify;",
    "forwarded-host": "proxy_set_header X-Forwarded-Host       $host;",
    "websocket": "proxy_set_header Upgrade                $http_upgrade;",
}

_CADDY_ODD: Final = "@odd vars_regexp {http.request.uri}"
_CADDY_GUARDED: Final = "@guarded path /api* /mcp* /index.php*"
_CADDY_DENIAL: Final = "handle_response @admitted {"
_CADDY: Final = {
    "asking": "rewrite /authz/caddy?",
    "api": _CADDY_GUARDED,
    "mcp": _CADDY_GUARDED,
    "index-php": _CADDY_GUARDED,
    "spelling": _CADDY_ODD,
    "encoded-slash": _CADDY_ODD,
    "double-slash": _CADDY_ODD,
    "forwarded-uri": "header_up X-Forwarded-Uri {uri}",
    "forwarded-method": "header_up X-Forwarded-Method {method}",
    "forwarded-for": "trusted_proxies_strict",
    "name": _CADDY_ODD,
    "foreign-headers": "header_up -X-Original-*",
    "connection": "request_header @plain -Connection",
    "request-id": "header_up X-Authz-Request-Id {http.request.uuid}",
    "body": "method GET",
    "authorization": "reverse_proxy 127.0.0.1:4190 {",
    "content-type": "reverse_proxy 127.0.0.1:4190 {",
    "preflight": "reverse_proxy 127.0.0.1:4190 {",
    "method-override": "header_up -X-Http-Method-Override",
    "large-header": "response_header_timeout 1500ms",
    "denial": _CADDY_DENIAL,
    "denial-401": _CADDY_DENIAL,
    "denial-404": _CADDY_DENIAL,
    "denial-429": _CADDY_DENIAL,
    "denial-503": _CADDY_DENIAL,
    "identity": "import identity X-Auth-User-Id",
    "identity-outside": "header_up -X-Auth-*",
    "alias": "header_up -X_Auth_*",
    "alias-dot": "header_up -X.Auth.*",
    "same-target": "header_up X-Forwarded-Uri {uri}",
    "forwarded-host": "header_up X-Forwarded-Host {hostport}",
    "websocket": "request_header @upgrade Connection Upgrade",
}

_ENVOY_DENIAL: Final = "allowed_client_headers:"
_ENVOY_FORWARDED: Final = 'regex: "x[-_.]forwarded[-_.](uri|method|host|port|prefix)"'
_ENVOY_REMOVED: Final = 'regex: "x[-_.]authz?[-_.].*"'
_ENVOY: Final = {
    "asking": "path_prefix: /authz/envoy",
    "api": "- match: {prefix: /api}",
    "mcp": "- match: {prefix: /mcp}",
    "index-php": "- match: {prefix: /index.php}",
    "spelling": "normalize_path: true",
    "encoded-slash": '- match: {safe_regex: {regex: ".*%(2[Ff]|5[Cc]).*"}}',
    "double-slash": "merge_slashes: true",
    "forwarded-uri": _ENVOY_FORWARDED,
    "forwarded-method": _ENVOY_FORWARDED,
    "forwarded-for": "use_remote_address: true",
    "name": "path_prefix: /authz/envoy",
    "foreign-headers": "allowed_headers:",
    "connection": "path_prefix: /authz/envoy",
    "request-id": '- {key: X-Authz-Request-Id, value: "%REQ(X-REQUEST-ID)%"}',
    "body": "http_service:",
    "authorization": "- {exact: authorization}",
    "content-type": "- {exact: content-type}",
    "preflight": "- {exact: access-control-request-method}",
    "method-override": "- {exact: x-http-method-override}",
    "large-header": "max_headers_count: 100",
    "denial": _ENVOY_DENIAL,
    "denial-401": "- {exact: www-authenticate}",
    "denial-404": _ENVOY_DENIAL,
    "denial-429": "- {exact: retry-after}",
    "denial-503": "status_on_error: {code: ServiceUnavailable}",
    "identity": "patterns: [{prefix: x-auth-}]",
    "identity-outside": _ENVOY_REMOVED,
    "alias": _ENVOY_REMOVED,
    "alias-dot": _ENVOY_REMOVED,
    "same-target": "path_prefix: /authz/envoy",
    "forwarded-host": _ENVOY_FORWARDED,
    "websocket": "upgrade_configs: [{upgrade_type: websocket}]",
}

_HAPROXY_ASK: Final = "http-request lua.authsidecar if coolify guarded"
_HAPROXY_GUARDED: Final = "acl guarded path -i -m beg /api /mcp /index.php"
_HAPROXY_DELETED: Final = r"http-request del-header ^x[-_.]+authz?[-_.] -m reg"
_HAPROXY: Final = {
    "asking": _HAPROXY_ASK,
    "api": _HAPROXY_GUARDED,
    "mcp": _HAPROXY_GUARDED,
    "index-php": _HAPROXY_GUARDED,
    "spelling": "http-request normalize-uri percent-decode-unreserved strict",
    "encoded-slash": "if coolify { path,lower -m sub %00 %2f",
    "double-slash": "http-request normalize-uri path-merge-slashes",
    "forwarded-uri": '["x-forwarded-uri"] = { txn.sf:pathq() }',
    "forwarded-method": '["x-forwarded-method"] = { txn.sf:method() }',
    "forwarded-for": '["x-forwarded-for"] = { txn.sf:src() }',
    "name": "if coolify { path,lower -m sub",
    "foreign-headers": r"http-request del-header ^x[-_.]+original[-_.] -m reg",
    "connection": r"http-request del-header ^x[-_.]+forwarded[-_.] -m reg",
    "request-id": '["x-authz-request-id"] = { txn.sf:uuid() }',
    "body": _HAPROXY_ASK,
    "authorization": '"authorization", "origin",',
    "content-type": '"content-type", ',
    "preflight": _HAPROXY_ASK,
    "method-override": '"x-http-method-override",',
    "large-header": _HAPROXY_ASK,
    "denial": _HAPROXY_ASK,
    "denial-401": _HAPROXY_ASK,
    "denial-404": _HAPROXY_ASK,
    "denial-429": _HAPROXY_ASK,
    "denial-503": _HAPROXY_ASK,
    "identity": _HAPROXY_ASK,
    "identity-outside": _HAPROXY_DELETED,
    "alias": _HAPROXY_DELETED,
    "alias-dot": _HAPROXY_DELETED,
    "same-target": '["x-forwarded-uri"] = { txn.sf:pathq() }',
    "forwarded-host": "http-request set-header X-Forwarded-Host %[req.hdr(host)]",
    "websocket": "timeout tunnel 1h",
}

REMEDIES: Final[Mapping[Proxy, Mapping[str, str]]] = {
    Proxy.TRAEFIK: _TRAEFIK,
    Proxy.NGINX: _NGINX,
    Proxy.CADDY: _CADDY,
    Proxy.ENVOY: _ENVOY,
    Proxy.HAPROXY: _HAPROXY,
}
"""A proxy that is not here cannot be examined."""
