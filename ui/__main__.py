"""`python -m ui`: serve the web app of one home folder, on this machine or, once there are accounts, to others."""

import argparse
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout
from pydantic import ValidationError

from assistant.console import fail
from assistant.errors import AssistantError
from assistant.settings import DoorSettings, Settings, load_settings
from feedback_store import open_store
from feedback_store.errors import StoreError
from ui.hosts import is_loopback


class CannotServe(Exception):
    """The app cannot be served like this; one sentence that says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse(arguments)
    try:
        with reserve(options.home, options.host, options.port, options.public_url, options.trusted_proxy) as held:
            settings, listener = held
            # After lock and port: this loads for seconds, and a second app must hear its refusal at once.
            from ui.serving import serve

            serve(settings, listener, options.host, as_json=options.json)
    except (CannotServe, AssistantError, StoreError) as error:
        return fail(str(error), options.json)
    except KeyboardInterrupt:
        return 0
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m ui", description="Serve the web app of one home folder.")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; another than this machine's own needs an operator account (default %(default)s)",
    )
    parser.add_argument(
        "--port", type=_port, default=7860, help="port to listen on; 0 takes a free one (default %(default)s)"
    )
    parser.add_argument(
        "--public-url", metavar="URL", help="what people open when a proxy stands before the app: https://HOST"
    )
    parser.add_argument(
        "--trusted-proxy",
        metavar="ADDRESS",
        action="append",
        help="a proxy whose X-Forwarded-For and -Proto are believed; may be given several times",
    )
    parser.add_argument("--home", help="home folder; else NIGHTSCHOOL_HOME, else the platform's user-data folder")
    parser.add_argument("--json", action="store_true", help="when ready, print the address as one JSON object")
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return port


def with_door(settings: Settings, public_url: str | None, trusted_proxies: list[str] | None) -> Settings:
    """Put what the command line says about the door in the place of the settings.

    Raises:
        CannotServe: the address is none that people could open, or a proxy is none that could be trusted.
    """
    door = settings.door.model_dump()
    if public_url is not None:
        door["public_url"] = public_url
    if trusted_proxies is not None:
        door["trusted_proxies"] = trusted_proxies
    try:
        return settings.model_copy(update={"door": DoorSettings(**door)})
    except ValidationError as error:
        wrong = error.errors()[0]
        if wrong["loc"][0] == "trusted_proxies":
            raise CannotServe(
                f"{wrong['input']} is no proxy that could be trusted; give --trusted-proxy as its address, such as "
                "127.0.0.1, or its network."
            ) from error
        raise CannotServe(
            f"{public_url} is no address that people could open; give --public-url as https://HOST, without a path."
        ) from error


@contextlib.contextmanager
def reserve(
    home: str | None,
    host: str,
    port: int,
    public_url: str | None = None,
    trusted_proxies: list[str] | None = None,
) -> Iterator[tuple[Settings, socket.socket]]:
    """Take the home folder's lock and the port, so that a second app is refused before any model is loaded.

    Args:
        public_url: in place of the setting, where given; so for `trusted_proxies`.

    Raises:
        CannotServe: home or port are taken, or others could come while nobody can keep them out.
        SettingsError: a setting is wrong.
        StoreError: the database cannot be read.
    """
    settings = with_door(load_settings(home), public_url, trusted_proxies)
    with _locked(settings.home):
        check_operator(settings, host)
        with _listener(host, port) as listener:
            yield settings, listener


def check_operator(settings: Settings, host: str) -> None:
    """Check that somebody can log in before other machines can connect.

    Raises:
        CannotServe: there is no operator; whoever came first would have everything.
    """
    others = host if not is_loopback(host) else settings.door.public_url or ", ".join(settings.door.trusted_proxies)
    if not others:
        return
    if settings.database_path.exists():
        store = open_store(settings.database_path, create=False, check=False)  # serving looks through it
        try:
            if store.accounts.has_operator():
                return
        finally:
            store.close()
    raise CannotServe(
        f"There are no accounts yet that may operate the app, so it cannot be opened to {others}; add one with "
        "`python -m feedback_store users add NAME --role operator`."
    )


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / "app.lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CannotServe(
            f"Another app is serving {home} already; use that one, stop it, or give another folder with --home."
        ) from error
    except OSError as error:
        raise CannotServe(
            f"The folder {home} cannot be used ({error.strerror}); give another one with --home."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _listener(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, else asyncio leaves Nagle's delay on, and every short answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
        except (OSError, UnicodeError) as error:
            raise CannotServe(_why_not_heard(host, port, error)) from error
        yield listener
    finally:
        listener.close()


def _why_not_heard(host: str, port: int, error: OSError | UnicodeError) -> str:
    """Say what is wrong with an address or port that cannot be listened on."""
    number = error.errno if isinstance(error, OSError) and not isinstance(error, socket.gaierror) else None
    if number == errno.EADDRINUSE:
        return f"Port {port} is taken; choose another one with --port."
    if number == errno.EACCES:
        return f"Port {port} is one that only the system may use; choose one from 1024 on with --port."
    if number not in (None, errno.EADDRNOTAVAIL, errno.EINVAL):
        return f"Port {port} of {host} cannot be used ({os.strerror(number)}); choose others with --host and --port."
    return f"{host} is no address of this machine; give --host one that is, or 0.0.0.0 for all of them."


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # One way out for ctrl-C and SIGTERM, so that the store and the lock are released on both.
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
