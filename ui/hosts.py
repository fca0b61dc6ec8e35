"""By which names the app may be opened, and whether a request comes from its own pages. Pure; reads headers only.

A page elsewhere can point a name of its own at this machine (DNS rebinding), or send requests to it that carry its
visitors' cookies: the first is refused by the Host header, the second by Origin.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}


class Hosts:
    """The names that the app goes by."""

    def __init__(self, bound: str, public_url: str = "", others: Iterable[str] = ()) -> None:
        """Collect them.

        Args:
            bound: the address that the app listens on.
            public_url: what people open; makes the machine's own names and addresses unnecessary.
        """
        self.public_origin = _origin(public_url) if public_url else None
        names = {*LOOPBACK_NAMES, *(name.strip().lower() for name in others)}
        if self.public_origin:
            names.add(self.public_origin[1])
        elif not is_loopback(bound):
            names |= {bound.strip("[]").lower(), *own_names()}
        self._names = frozenset(names)
        # Where any address answers, the one that a request arrived at is the machine's own.
        self._own_addresses = not self.public_origin and not is_loopback(bound)

    def knows(self, host: str, arrived_at: str | None = None) -> bool:
        """Say whether a Host header names this app.

        Args:
            arrived_at: the address of ours that the connection was made to.
        """
        name = host_name(host)
        if name is None:
            return False
        return name in self._names or (self._own_addresses and name == arrived_at)

    def public_scheme_of(self, host: str) -> str | None:
        """Return the scheme of the public address when a Host header names it; None for any other name."""
        return self.public_origin[0] if self.public_origin and host_name(host) == self.public_origin[1] else None

    def is_foreign(self, headers: Mapping[str, str], scheme: str) -> bool:
        """Say whether a browser sent this from a page that is not the app's own.

        What names no page at all comes from no browser of today, and so carries nobody's cookies unknowingly.

        Args:
            scheme: by which the request came, `http` or `https`.
        """
        page = headers.get("origin")
        if page is None:
            site = headers.get("sec-fetch-site")
            if site is not None:
                return site not in ("same-origin", "none")
            page = headers.get("referer")
        if page is None:
            return False
        origin = _origin(page)
        return origin is None or origin not in (_origin(f"{scheme}://{headers.get('host', '')}"), self.public_origin)


def host_name(host: str) -> str | None:
    """Return the name or address of a Host header without its port; None when it is malformed."""
    origin = _origin(f"http://{host}") if _HOST.fullmatch(host) else None
    return origin[1] if origin else None


def is_loopback(host: str) -> bool:
    """Say whether only this machine can connect to an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def own_names() -> set[str]:
    """Return what this machine is called by itself and in its network."""
    name = socket.gethostname().lower()
    return {name, f"{name.split('.')[0]}.local"} if name else set()


def reachable(bound: str, port: int) -> tuple[str, str]:
    """Return by which address the app is opened here, and by which elsewhere; the latter is empty where it is the same.

    Args:
        bound: the address that the app listens on.
    """
    if ipaddress.ip_address(bound).is_unspecified:
        return f"http://{'[::1]' if ':' in bound else '127.0.0.1'}:{port}", f"http://{socket.gethostname()}:{port}"
    return f"http://{f'[{bound}]' if ':' in bound else bound}:{port}", ""


def _origin(url: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port of an address; None for what is none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.username is not None:
        return None
    return parts.scheme, parts.hostname, port if port is not None else _DEFAULT_PORTS[parts.scheme]
