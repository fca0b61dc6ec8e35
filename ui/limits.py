"""How often and how much at once: counted in memory, of bounded size, forgotten at a restart. Knows no requests."""

import ipaddress
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Final

PERIOD_S: Final = 60.0
MAX_KEYS: Final = 20_000
"""Keys remembered by one counter; beyond, those unused for longest are forgotten."""
GUESSED: Final = 20
"""Wrong passwords a minute, from everywhere, that make an account one that is being guessed at."""
Clock = Callable[[], float]


class Window:
    """Counts what happened in the last minute, key by key."""

    def __init__(self, limit: int, clock: Clock = time.monotonic, max_keys: int = MAX_KEYS) -> None:
        self._limit = limit
        self._clock = clock
        self._max_keys = max_keys
        self._times: OrderedDict[Hashable, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: Hashable, limit: int | None = None) -> bool:
        """Count one more, or refuse when there were as many as allowed within the last minute.

        Args:
            limit: in place of the usual one; never above it.
        """
        with self._lock:
            times = self._recent(key)
            if len(times) >= (self._limit if limit is None else limit):
                return False
            times.append(self._clock())
            return True

    def count(self, key: Hashable) -> int:
        """Return how many there were within the last minute."""
        with self._lock:
            return len(self._recent(key))

    def give_back(self, key: Hashable) -> None:
        """Take the latest one back."""
        with self._lock:
            times = self._recent(key)
            if times:
                times.pop()

    def forget(self, key: Hashable) -> None:
        """Begin afresh with a key."""
        with self._lock:
            self._times.pop(key, None)

    def _recent(self, key: Hashable) -> deque[float]:
        times = self._times.setdefault(key, deque())
        self._times.move_to_end(key)
        while times and times[0] <= self._clock() - PERIOD_S:
            times.popleft()
        while len(self._times) > self._max_keys:
            self._times.popitem(last=False)
        return times


class Turnstile:
    """Lets so many of one key in at once; counts nothing for a key that has left."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def enter(self, key: Hashable) -> bool:
        """Let one more in, or say that there are as many as allowed. Whoever is let in must leave."""
        with self._lock:
            inside = self._inside.get(key, 0)
            if inside >= self._limit:
                return False
            self._inside[key] = inside + 1
            return True

    def leave(self, key: Hashable) -> None:
        """Let one out."""
        with self._lock:
            inside = self._inside.get(key, 0)
            assert inside, "nobody of that key is inside"
            if inside == 1:
                del self._inside[key]
            else:
                self._inside[key] = inside - 1


class Line:
    """Lets one of each key through at a time; a few more wait behind it, each for those before it."""

    def __init__(self, limit: int) -> None:
        """Begin with nobody.

        Args:
            limit: of one key, the one that is through included.
        """
        self._limit = limit
        self._lines: dict[Hashable, list[threading.Event]] = {}
        self._lock = threading.Lock()

    def join(self, key: Hashable) -> threading.Event | None:
        """Stand in line: what is returned is set once it is one's turn; None where the line is full."""
        with self._lock:
            line = self._lines.get(key, [])
            if len(line) >= self._limit:
                return None
            turn = threading.Event()
            self._lines[key] = [*line, turn]
            if not line:
                turn.set()
            return turn

    def leave(self, key: Hashable, turn: threading.Event) -> None:
        """Go, and let the next one through, whether one was through oneself or waited still."""
        with self._lock:
            line = [other for other in self._lines[key] if other is not turn]
            if line:
                self._lines[key] = line
                line[0].set()
            else:
                del self._lines[key]


class LoginLimits:
    """How many wrong passwords are heard before the next try is turned away unheard.

    Counted are wrong passwords only, by address, and by account and address together. The account alone is never shut:
    whoever fails at somebody's name elsewhere does not lock them out. When an account is guessed at from many
    addresses, each of them gets one wrong try a minute instead of several, and an address that has not failed there
    is still heard.
    """

    def __init__(self, per_account: int, per_address: int, clock: Clock = time.monotonic) -> None:
        self._pairs = Window(per_account, clock)
        self._addresses = Window(per_address, clock)
        self._guessed = Window(GUESSED, clock)

    def begin(self, name: str, address: str) -> bool:
        """Say whether this try is heard; one that is counts as wrong until `succeed` says otherwise.

        Args:
            name: as the account is stored; nobody's name counts like anybody's.
            address: of `address_key`.
        """
        if not self._addresses.take(address):
            return False
        guessed = self._guessed.count(name) >= GUESSED
        if not self._pairs.take((name, address), 1 if guessed else None):
            self._addresses.give_back(address)
            return False
        self._guessed.take(name)
        return True

    def succeed(self, name: str, address: str) -> None:
        """Forget the wrong tries of somebody who knew the password."""
        self._pairs.forget((name, address))
        self._addresses.give_back(address)
        self._guessed.give_back(name)


def address_key(host: str) -> str:
    """Return what an address is counted under: itself, or its network of 64 bits, which one household has whole."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
