"""Make the database of this program's version, for later ones to migrate: `python -m tests.make_store_fixture`.

Run it once whenever the tables changed, before a release; a fixture that exists is never made anew. The file is kept
packed, for most of it is empty pages.
"""

import gzip
import sys
import tempfile
from pathlib import Path

from feedback_store.schema import VERSION
from feedback_store.store import open_store
from tests.test_store_world import ORIGIN, answer, ask, fill

FOLDER = Path(__file__).parent / "fixtures"


def make(folder: Path = FOLDER) -> Path:
    """Write the fixture of this version and return its path."""
    target = folder / f"store-v{VERSION}.db.gz"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "nightschool.db"
        store = open_store(path)
        fill(store)
        person = store.people.add("ada").id
        question = ask(store, "Why is the sky blue? 밤", person)
        replies = []
        for text, value in (("Light scatters.", 1), ("It just is.", -1), ("Ask me later.", 0)):
            replies.append(answer(store, question, text, person).id)
            store.votes.rate(replies[-1], person, value)
        store.votes.rank(question.id, person, {reply: place for place, reply in enumerate(replies, 1)})
        store.votes.retract_ranking(question.id, person)
        judge = store.ai.judge("model-1", "Be kind.")
        store.ai.add_choice(judge, (replies[0], replies[1]), 1.0, 0.5, 0)
        store.ai.add_rewrite(judge, replies[1], "It says nothing.", "What does light do in the air?")
        ranked = store.conversations.start(person, kind="rank").id
        store.conversations.add_user_message(ranked, person, "Four answers, please.")
        store.conversations.begin_reply(question.id, person, ORIGIN)
        store.close()
        folder.mkdir(exist_ok=True)
        target.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return target


if __name__ == "__main__":
    sys.stdout.write(f"{make()}\n")
