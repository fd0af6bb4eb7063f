"""Who may ask what: keys, hosts and origins, and the gate that every request passes.

level     asked for by                      answered
open      anybody                           the state of the server, the shell of the page
user      a key, or the admin key           everything else, and every path that is not known
admin     the admin key; none: nobody       what changes which adapters are served

The gate decides by `scope["path"]` and the route that takes it, as the router does.  A URL made of the Host header,
which the client chooses, decides nothing.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from lorica.errors import RequestError
from lorica.serve.http.errors import ApiError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?)(?::[0-9]{1,5})?")
KEY = re.compile(r"[!-~]{1,512}")


class Level(StrEnum):
    open = "open"
    user = "user"
    admin = "admin"


@dataclass(frozen=True, kw_only=True)
class Security:
    """keys      each opens every route of level user, and keeps what is reused of prompts to itself
    admin     opens every route; None: those of level admin are closed
    hosts     names that the Host header may hold, beside the address that was connected to
    origins   pages of other addresses that may ask, as a proxy's https://example.org; the server's own always may

    RequestError for a key that no header can carry, or that is both.
    """

    keys: tuple[str, ...] = field(repr=False)
    admin: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = LOOPBACK
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [*self.keys, *([] if self.admin is None else [self.admin])]
        if not self.keys:
            raise RequestError("serve: at least one key is needed")
        if not all(KEY.fullmatch(key) for key in given):
            raise RequestError("serve: a key is 1 to 512 visible ASCII characters without blanks")
        if self.admin in self.keys:
            raise RequestError("serve: the admin key opens more than the others do; give it a value of its own")

    def admit(self, scope: Scope, level: Level) -> str:
        """The tenant (a digest of the key; "" where none was asked for).  ApiError 401, 403 or 421."""
        headers = Headers(scope=scope)
        host = self._host(headers, scope)
        self._origin(headers, host)
        if level is Level.open:
            return ""
        return self._tenant(headers, level)

    def _host(self, headers: Headers, scope: Scope) -> str:
        given = headers.getlist("host")
        if len(given) != 1:
            raise ApiError(421, "send one Host header")
        found = HOST.fullmatch(given[0].lower())
        if found is None or not (found[1] in self.hosts or found[1] == _connected_to(scope)):
            raise ApiError(421, "this server does not answer to that Host (lorica serve --allow-host)")
        return given[0].lower()

    def _origin(self, headers: Headers, host: str) -> None:
        """Pages send where they come from; other clients send nothing."""
        own = (f"http://{host}", f"https://{host}", *self.origins)
        if any(origin.lower() not in own for origin in headers.getlist("origin")):
            raise ApiError(403, "pages of that Origin may not ask here (lorica serve --allow-origin)")

    def _tenant(self, headers: Headers, level: Level) -> str:
        key = bearer(headers)
        if self.admin is not None and same_key(key, [self.admin]):
            return tenant_of(key)
        if not same_key(key, self.keys):
            raise ApiError(401, "a key is needed: Authorization: Bearer KEY", headers={"www-authenticate": "Bearer"})
        if level is Level.admin:
            raise ApiError(403, _closed(self.admin))
        return tenant_of(key)


def _closed(admin: str | None) -> str:
    if admin is None:
        return "adapters are changed with the admin key, and this server was started without one (--admin-key)"
    return "adapters are changed with the admin key"


def bearer(headers: Headers) -> str:
    """The key that was sent; "" where there is none, or more than one."""
    given = headers.getlist("authorization")
    kind, _, key = (given[0] if len(given) == 1 else "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def same_key(given: str, known: Iterable[str]) -> bool:
    """Whether it is one of them, in a time that depends on neither: digests are compared, and all of them."""
    mine = hashlib.sha256(given.encode()).digest()
    same = [hmac.compare_digest(mine, hashlib.sha256(key.encode()).digest()) for key in known]
    return any(same)


def tenant_of(key: str) -> str:
    return hashlib.sha256(b"tenant of\0" + key.encode()).hexdigest()[:32]


def _connected_to(scope: Scope) -> str | None:
    """The address of this end, as a Host header writes it: a name can be made to point here, an address cannot."""
    server = scope.get("server")
    if not server:
        return None
    try:
        address = ipaddress.ip_address(server[0])
    except ValueError:
        return None
    return f"[{address}]" if address.version == 6 else str(address)


@dataclass(frozen=True)
class Levels:
    """Which level a request asks for.  A route without one is for the admin, a path without a route for users."""

    routes: Sequence[BaseRoute]
    by_route: Mapping[tuple[str, str], Level]

    def of(self, scope: Scope) -> tuple[Level, str]:
        """The level and the route's path, which is `-` where there is no route."""
        for route in self.routes:
            match, _ = route.matches(scope)
            path = getattr(route, "path", "")
            if match is Match.FULL:
                return self.by_route.get((scope["method"], path), Level.admin), path
        return Level.user, "-"
