"""The commands about files: `import`, `export` and `restore`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from feedback_store.exchange import KINDS
from feedback_store.exporters import READERS, export_file, export_to
from feedback_store.foreign import FORMATS
from feedback_store.importers import import_file
from feedback_store.restoring import restore
from feedback_store.store import Store, open_store

STDOUT = Path("-")
Commands = Any
"""What argparse's add_subparsers returns; its type has no public name."""


def add_file_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the parsers of `import`, `export` and `restore`."""
    put = commands.add_parser("import", parents=[common], help="store the judgements of a file, whole or not at all")
    put.add_argument("file", type=Path, metavar="FILE.jsonl", help="one kind of judgement a file")
    put.add_argument("--kind", choices=KINDS, help="what the lines are; needed unless --format says it")
    put.add_argument("--format", choices=tuple(FORMATS), default="nightschool", help="whose file it is")
    put.add_argument("--skip-bad", action="store_true", help="keep the good lines of a file that has bad ones")
    take = commands.add_parser("export", parents=[common], help="write everything of one kind that may be taught")
    take.add_argument("kind", choices=tuple(READERS), metavar="KIND", help=", ".join(READERS))
    take.add_argument("file", type=Path, metavar="OUT.jsonl", help="must not exist yet; - is standard output")
    take.add_argument("--csv", action="store_true", help="write a table for a spreadsheet instead of JSON lines")
    back = commands.add_parser("restore", parents=[common], help="put a backup in the database's place, checked first")
    back.add_argument("file", type=Path, metavar="FILE", help="what backup made; it is only read")


def check_file_command(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with wrong usage where an import does not say what its lines are, or two things want standard output."""
    if arguments.command == "export" and arguments.file == STDOUT and arguments.json:
        parser.error("export to standard output leaves no room there for --json; name a file, or leave --json out")
    if arguments.command == "import" and arguments.kind is None:
        if arguments.format == "nightschool":
            parser.error("import needs --kind")
        arguments.kind = FORMATS[arguments.format][0]


def run_file_command(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run `import` or `export` and return what to show; nothing beside an export to standard output."""
    if arguments.command == "export" and arguments.file == STDOUT:
        export_to(store, arguments.kind, sys.stdout.buffer, as_csv=arguments.csv)
        return {}
    if arguments.command == "export":
        count = export_file(store, arguments.kind, arguments.file, as_csv=arguments.csv)
        return {"ok": True, "kind": arguments.kind, "file": str(arguments.file.absolute()), "lines": count}
    found = import_file(store, arguments.file, arguments.kind, format=arguments.format, skip_bad=arguments.skip_bad)
    return {
        "ok": True,
        "kind": arguments.kind,
        "added": found.added,
        "repeated": found.repeated,
        "other": found.other,
        "skipped": found.skipped,
        "problems": list(found.problems),
    }


def run_restore(path: Path, backup: Path) -> dict[str, Any]:
    """Restore a backup over the database, which need not be one that opens, and return what to show."""
    kept = restore(path, backup)
    open_store(path, create=False).close()
    return {"ok": True, "file": str(path), "kept": str(kept) if kept else None}
