"""`python -m ui`: serve the web app of one home folder on this machine."""

import argparse
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from assistant.errors import AssistantError
from assistant.settings import Settings, load_settings
from feedback_store.errors import StoreError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class CannotServe(Exception):
    """The app cannot be served like this; one sentence that says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse(arguments)
    try:
        with reserve(options.home, options.host, options.port) as (settings, listener):
            # After lock and port: this loads for seconds, and a second app must hear its refusal at once.
            from ui.serving import serve

            serve(settings, listener, as_json=options.json)
    except (CannotServe, AssistantError, StoreError) as error:
        if options.json:
            sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m ui", description="Serve the web app on this machine.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; this machine only (default %(default)s)"
    )
    parser.add_argument(
        "--port", type=_port, default=7860, help="port to listen on; 0 takes a free one (default %(default)s)"
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


@contextlib.contextmanager
def reserve(home: str | None, host: str, port: int) -> Iterator[tuple[Settings, socket.socket]]:
    """Take the home folder's lock and the port, so that a second app is refused before any model is loaded.

    Raises:
        CannotServe: the host is not this machine, or home or port are taken.
        SettingsError: a setting is wrong.
    """
    if host not in LOOPBACK:
        raise CannotServe(
            f"The app has no accounts yet, so it cannot be opened to {host}; leave --host out, or give 127.0.0.1."
        )
    settings = load_settings(home)
    with _locked(settings.home), _listener(host, port) as listener:
        yield settings, listener


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
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
        except OSError as error:
            raise CannotServe(f"Port {port} is taken ({error.strerror}); choose another one with --port.") from error
        yield listener
    finally:
        listener.close()


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # One way out for ctrl-C and SIGTERM, so that the store and the lock are released on both.
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
