"""The store's commands: `python -m feedback_store stats|verify|backup|restore|import|export|users|erase-user`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import platformdirs

from feedback_store.connection import RESTORE
from feedback_store.errors import StoreBusy, StoreDamaged, StoreError
from feedback_store.file_commands import add_file_commands, check_file_command, run_file_command, run_restore
from feedback_store.integrity import backup, verify
from feedback_store.store import Store, open_store
from feedback_store.telling import in_words
from feedback_store.user_commands import add_user_commands, run_user_command

DATABASE_NAME = "nightschool.db"


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--home", type=Path, metavar="DIR", help="the folder that holds everything")
    common.add_argument("--json", action="store_true", help="print one JSON object")
    parser = argparse.ArgumentParser(
        prog="python -m feedback_store", description="What people said, and how they voted."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("stats", parents=[common], help="count what is stored, and tell how people vote")
    commands.add_parser("verify", parents=[common], help="check that everything is whole")
    copy = commands.add_parser("backup", parents=[common], help="make a checked copy while others go on writing")
    copy.add_argument("file", type=Path, metavar="FILE", help="the copy; must not exist yet")
    add_file_commands(commands, common)
    add_user_commands(commands, common)
    return parser


def _home(asked: Path | None) -> Path:
    if asked is not None:
        return asked
    named = os.environ.get("NIGHTSCHOOL_HOME")
    return Path(named or platformdirs.user_data_dir("nightschool", appauthor=False))


def _stats(store: Store) -> dict[str, Any]:
    live, found = store.registry.live(), store.votes.overview()
    agreement, left = found.agreement, found.left
    return {
        **found.counts,
        "kept_from_teaching": found.kept_from_teaching,
        "agreement": {
            "items": agreement.items,
            "percent": _percent(agreement.percent),
            "kappa": None if agreement.kappa is None else round(agreement.kappa, 3),
        },
        "left_side": {
            "chosen": left.chosen,
            "percent": _percent(left.share),
            "low": _percent(left.low),
            "high": _percent(left.high),
        },
        "votes_a_minute": None if found.votes_a_minute is None else round(found.votes_a_minute, 2),
        "ai": store.ai.counts(),
        "live": live.adapter_id or "base",
        "generation": live.generation,
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def _verify(store: Store) -> dict[str, Any]:
    problems = verify(store)
    return {"ok": not problems, "problems": problems}


def _backup(store: Store, target: Path) -> dict[str, Any]:
    backup(store, target)
    return {"ok": True, "file": str(target.absolute()), "size_bytes": target.stat().st_size}


def _write(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
        return
    sys.stdout.write(in_words(result))


def _run(arguments: argparse.Namespace) -> int:
    path = _home(arguments.home).expanduser() / DATABASE_NAME
    if arguments.command == "restore":
        _write(run_restore(path, arguments.file), as_json=arguments.json)
        return 0
    # the first operator and older votes may come before the first start
    create = arguments.command == "import" or (arguments.command == "users" and arguments.users_command == "add")
    store = open_store(path, create=create, check=arguments.command != "stats")
    try:
        if arguments.command == "stats":
            result = _stats(store)
        elif arguments.command == "verify":
            result = _verify(store)
        elif arguments.command in ("users", "erase-user"):
            result = run_user_command(store, arguments)
        elif arguments.command in ("import", "export"):
            result = run_file_command(store, arguments)
        else:
            result = _backup(store, arguments.file)
    finally:
        store.close()
    _write(result, as_json=arguments.json)
    if not result.get("clean", True):
        return _fail(
            StoreBusy(f"Traces stay in {path}, which is in use or lacks room; run erase-user --finish again later.")
        )
    if not result.get("ok", True):
        return _fail(StoreDamaged(f"{path} is not whole; {RESTORE}."))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed; wrong usage exits with 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    check_file_command(parser, arguments)
    try:
        return _run(arguments)
    except StoreError as error:
        if arguments.json:
            _write({"error": str(error)}, as_json=True)
        return _fail(error)


def _fail(error: StoreError) -> int:
    sys.stderr.write(f"{error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
