"""The store under load: python -m bench.store [--seconds 30] [--votes 100000] [--folder DIR] [--json]

Importing 10,000 votes; eight writers in two processes offering 100 votes a second together while a third process reads
pairs as a night does; the operator's numbers and page over 100,000 votes. Prints a Markdown table, or one JSON object.
The folder should be on the disk that is to be measured: every vote is written through to it.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant.settings import Settings
from feedback_store.connection import connect, transaction
from feedback_store.importers import import_file
from feedback_store.records import Choice, Origin
from feedback_store.store import Store, open_store

if TYPE_CHECKING:
    from ui.operate import OperatePage

ORIGIN = Origin(None, "base", "none", "plain", "Be kind.", 0.7, 0.95, 64, 1)
PROCESSES, WRITERS_EACH = 2, 4
WORDS = "word " * 60
_READ_PAIRS = 2_000
"""How many pairs the reader goes through again and again."""


@dataclass(frozen=True)
class Offered:
    """What became of the votes that were offered."""

    sent: int
    stored: int
    refused: tuple[str, ...]
    """What was said, once each."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    """From the moment a vote was due, so that one delayed by the vote before it counts as slow too."""
    times_read: int
    """How often all pairs were read meanwhile."""


def read_pairs(path: Path, done: Any, ready: Any, answers: Any) -> None:
    """Read every pair again and again, one at a time, as a night does."""
    store = open_store(path, create=False)
    times = 0
    ready.wait(60)
    ready.wait(60)
    while not done.is_set():
        times += sum(1 for _ in store.votes.pairs()) >= _READ_PAIRS
    store.close()
    answers.put(times)


def offer_votes(
    path: Path,
    *,
    seconds: float,
    votes_per_s: float = 100.0,
    pairs: int = _READ_PAIRS,
    reader: Callable[..., None] = read_pairs,
) -> Offered:
    """Let eight writers in two processes vote at an even pace, each on replies of their own, and a third process read.

    Args:
        path: where the database is made.
        pairs: how many there are to read.
        reader: what the third process does, from the second `ready.wait` on until `done` is set; it puts into
            `answers` how often it read.
    """
    store = open_store(path)
    each = round(seconds * votes_per_s / (PROCESSES * WRITERS_EACH))
    with store.connections.write():
        jobs = [_prepare_writer(store, number, each) for number in range(PROCESSES * WRITERS_EACH)]
        _prepare_pairs(store, pairs)
    context = multiprocessing.get_context("spawn")
    start, done = context.Value("d", 0.0), context.Event()
    answers, ready = context.Queue(), context.Barrier(PROCESSES + 2)
    pause_s = seconds / each
    children = [
        *(
            context.Process(target=_vote, args=(path, jobs[n::PROCESSES], pause_s, start, ready, answers))
            for n in range(PROCESSES)
        ),
        context.Process(target=reader, args=(path, done, ready, answers)),
    ]
    for child in children:
        child.start()
    ready.wait(60)
    start.value = time.time() + 0.5
    ready.wait(60)
    voted = [answers.get(timeout=seconds + 120) for _ in range(PROCESSES)]
    done.set()
    times_read = answers.get(timeout=120)
    for child in children:
        child.join()
    late = sorted(late_s for found in voted for late_s, _ in found)
    stored = store.votes.counts()["thumbs_up"]
    store.close()
    return Offered(
        sent=len(late),
        stored=stored,
        refused=tuple(sorted({said for found in voted for _, said in found if said})),
        p50_ms=1000 * late[len(late) // 2],
        p99_ms=1000 * late[len(late) * 99 // 100],
        max_ms=1000 * late[-1],
        times_read=times_read,
    )


def _prepare_writer(store: Store, number: int, votes: int) -> tuple[int, list[str]]:
    """Return somebody and the replies that they will vote on."""
    person = store.people.add(f"writer-{number}").id
    store.consent.set_person(person, "on")
    replies: list[str] = []
    for place in range(votes):
        if place % 20 == 0:
            question = _ask(store, person, f"Question {number} {place}")
        replies.append(_answer(store, question, person, f"Answer {place} {WORDS}"))
    return person, replies


def _prepare_pairs(store: Store, pairs: int) -> None:
    owner = store.people.owner().id
    for place in range(pairs):
        question = _ask(store, owner, f"Question {place}")
        sides = [_answer(store, question, owner, f"{side} {place} {WORDS}") for side in "ab"]
        side: Choice = "right" if place % 2 else "left"  # who always takes one side is not heard
        store.votes.choose(store.votes.show_comparison(owner, question, *sides).id, owner, side)


def _ask(store: Store, person: int, text: str) -> str:
    conversation = store.conversations.start(person)
    return store.conversations.add_user_message(conversation.id, person, text).id


def _answer(store: Store, question: str, person: int, text: str) -> str:
    reply = store.conversations.begin_reply(question, person, ORIGIN)
    store.conversations.finish_reply(reply.id, text, "done", "end", 60)
    return reply.id


def _vote(path: Path, jobs: list[tuple[int, list[str]]], pause_s: float, start: Any, ready: Any, answers: Any) -> None:
    """Vote as the writers of one process, and answer how late each vote was stored."""
    store = open_store(path, create=False)
    found: list[tuple[float, str | None]] = []

    def write(number: int, person: int, replies: list[str]) -> None:
        store.people.owner()  # opens this thread's connection
        for place, reply in enumerate(replies):
            due = start.value + pause_s * (place + number / len(jobs))
            time.sleep(max(0.0, due - time.time()))
            said = None
            try:
                store.votes.rate(reply, person, 1)
            except Exception as error:  # whatever it is, it is what is looked for
                said = f"{type(error).__name__}: {error}"
            found.append((time.time() - due, said))

    ready.wait(60)
    ready.wait(60)
    threads = [threading.Thread(target=write, args=(number, *job)) for number, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    answers.put(found)


def import_votes(folder: Path, kind: str, votes: int) -> float:
    """Import a file of votes into an empty store and return the seconds it took.

    Args:
        kind: thumbs or comparisons.
    """
    file = folder / f"{kind}.jsonl"
    with file.open("w") as lines:
        for place in range(votes):
            line: dict[str, Any] = {"prompt": f"Question {place}", "annotator": f"person-{place % 50}"}
            if kind == "thumbs":
                line |= {"completion": f"Answer {place} {WORDS}", "label": place % 3 > 0}
            else:
                line |= {"left": f"Left {place} {WORDS}", "right": f"Right {place} {WORDS}", "choice": "left"}
            lines.write(json.dumps(line) + "\n")
    store = open_store(folder / f"{kind}.db")
    began = time.perf_counter()
    added = import_file(store, file, kind).added
    seconds = time.perf_counter() - began
    store.close()
    assert added == votes
    return seconds


def make_votes(path: Path, *, comparisons: int, thumbs: int, people: int = 50) -> None:
    """Make a store of so many votes by SQL alone, each in a conversation of its own; the rows have no hashes.

    Three people judge each item, one every 20 seconds.
    """
    open_store(path).close()
    db = connect(path)
    every = f"WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {comparisons + thumbs - 1})"
    at = f"strftime('%Y-%m-%dT%H:%M:%S.000000Z', 1700000000 + 20 * (i / {people}), 'unixepoch')"
    who = f"2 + i % {people}"
    with transaction(db):
        db.execute(
            f"{every} INSERT INTO person(name, role, kind, created_at, teach)"
            f" SELECT 'person-' || i, 'member', 'account', '', 'on' FROM n LIMIT {people}"
        )
        db.execute("INSERT INTO system_prompt(id, text) VALUES ('system', 'Be kind.')")
        db.execute(
            f"{every} INSERT INTO conversation(id, person_id, title, kind, created_at, updated_at)"
            f" SELECT 'talk-' || i, {who}, 'Question', 'chat', '', '' FROM n"
        )
        db.execute(
            f"{every} INSERT INTO message(id, conversation_id, role, text, state, created_at)"
            " SELECT 'question-' || i, 'talk-' || i, 'user', 'Question ' || (i / 3), 'done', '' FROM n"
        )
        for side in ("left", "right"):
            db.execute(
                f"{every} INSERT INTO message(id, conversation_id, parent_id, role, text, state, created_at)"
                f" SELECT '{side}-' || i, 'talk-' || i, 'question-' || i, 'assistant', '{side} {WORDS}' || (i / 3),"
                " 'done', '' FROM n"
            )
            db.execute(
                f"{every} INSERT INTO origin(message_id, base_id, numeric_form, preset, system_id, temperature, top_p,"
                f" max_new_tokens, seed) SELECT '{side}-' || i, 'base', 'none', 'plain', 'system', 0, 1, 64, 1 FROM n"
            )
        db.execute(
            f"{every} INSERT INTO comparison(id, person_id, conversation_id, prompt_message_id, left_message_id,"
            " right_message_id, choice, shown_at, chosen_at, item, left_first)"
            f" SELECT 'shown-' || i, {who}, 'talk-' || i, 'question-' || i, 'left-' || i, 'right-' || i,"
            f" CASE abs(random() % 4) WHEN 0 THEN 'tie' WHEN 1 THEN 'right' ELSE 'left' END, {at}, {at},"
            f" printf('%064x', i / 3), 1 FROM n WHERE i < {comparisons}"
        )
        db.execute(
            f"{every} INSERT INTO vote(message_id, person_id, value, reasons, comment, version, updated_at)"
            f" SELECT 'left-' || i, {who}, 1 - 2 * (i % 3 = 0), '[]', '', 1, {at} FROM n WHERE i >= {comparisons}"
        )
    db.close()


def time_stats(path: Path) -> dict[str, float]:
    """Return the seconds that the operator's numbers take: alone, as the operator's page, and as a command."""
    store = open_store(path, create=False)
    overview_s = min(_seconds(store.votes.overview) for _ in range(3))
    page_s = min(_seconds(operate_page(store, path.parent).fill) for _ in range(3))
    store.close()
    home = ["--home", str(path.parent), "--json"]
    command = [sys.executable, "-m", "feedback_store", "stats", *home]
    command_s = min(_seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(3))
    return {"overview_s": overview_s, "operate_page_s": page_s, "command_s": command_s}


def operate_page(store: Store, home: Path) -> "OperatePage":
    """Return what fills the operator's page."""
    # here, because every writer's process imports this module, and the web framework takes seconds
    from ui.nights import Nights
    from ui.operate import OperateDesk, OperatePage
    from ui.texts import ENGLISH

    settings = Settings(home=home)
    nights = Nights(home, settings.runs_dir)
    return OperatePage(OperateDesk(store, nights, settings, "base", ENGLISH), ENGLISH)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _measure(folder: Path, seconds: float, votes: int) -> dict[str, Any]:
    imported = {f"{kind}_s": import_votes(folder, kind, 10_000) for kind in ("thumbs", "comparisons")}
    offered = offer_votes(folder / "writers.db", seconds=seconds)
    stats = {}
    for kind in ("comparisons", "thumbs"):
        path = folder / kind / "nightschool.db"
        make_votes(path, **{"comparisons": 0, "thumbs": 0, kind: votes})
        stats |= {f"{kind}_{name}": taken for name, taken in time_stats(path).items()}
    return {"import_10000": imported, "writers": offered.__dict__, f"stats_{votes}": stats}


def _table(found: dict[str, Any]) -> str:
    lines = ["| what | measured |", "|---|---|"]
    for what, numbers in found.items():
        for name, value in numbers.items():
            shown = f"{value:,.2f}" if isinstance(value, float) else value if value != () else "none"
            lines.append(f"| {what.replace('_', ' ')}: {name.replace('_', ' ')} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long votes are offered")
    parser.add_argument("--votes", type=int, default=100_000, help="how many the operator's numbers are over")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a temporary one by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = _measure(Path(folder), args.seconds, args.votes)
    sys.stdout.write((json.dumps(found) if args.json else _table(found)) + "\n")


if __name__ == "__main__":
    main()
