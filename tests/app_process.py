"""The app in a process of its own, forked from one that has imported it: an app for every test in a third of the time.

What is forked has opened nothing and started no thread; from there on it is `python -m ui`.
"""

import contextlib
import multiprocessing
import os
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ui.serving", "tests.app_process"])


def become_app(arguments: Sequence[str], environment: dict[str, str], out: Connection, errors: Path) -> None:
    """Do what `python -m ui` does with these arguments, from the repository's root."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    os.dup2(out.fileno(), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.argv = ["ui", *arguments]
    runpy.run_module("ui", run_name="__main__")


@contextlib.contextmanager
def running_app(home: Path, *arguments: str, **settings: str) -> Iterator[tuple[str, ForkServerProcess]]:
    """Serve a home with the scripted engine on a free port; yields the address and the process."""
    environment = {**os.environ, "NIGHTSCHOOL_ENGINE": "fake", **settings}
    command = ["--port", "0", "--home", str(home), *arguments]
    errors = home.parent / "app.errors"
    hears, says = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=become_app, args=(command, environment, says, errors), daemon=True)
    process.start()
    says.close()
    try:
        with open(hears.fileno(), encoding="utf-8", closefd=False) as out:
            said = out.readline()
        address = re.search(r"http://\S+", said)
        if address is None:
            process.kill()
            raise AssertionError(f"The app did not start: {said}{errors.read_text()}")
        yield address.group(), process
    finally:
        process.terminate()
        process.join(30)
        ended = process.exitcode is not None
        process.kill()
        hears.close()
        assert ended, "the app did not end"
