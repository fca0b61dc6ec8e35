"""Whatever people do in whatever order, the store agrees with a model of plain dictionaries.

Stated after every step: at most one thumb a person and reply, and it is the end of its history; examples come from the
chats of people who allow it and from nowhere else; erased people are nowhere; a tainted adapter is never promoted; a
session opens one person's door only. Stated after every example: the file is whole, and opening it again changes
nothing.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from feedback_store.erasure import erase_user
from feedback_store.errors import BadInput, NotYours, StoreError, TaintedAdapter, Withdrawn
from feedback_store.integrity import verify
from feedback_store.records import REASONS_DOWN, REASONS_UP, TrainItem
from feedback_store.store import Store, open_store
from tests.new_store import open_in
from tests.test_store_opening import dump
from tests.test_store_world import ORIGIN, answer, ask

PICK = st.integers(0, 1000)
"""Which of those that there are."""
TEXT = st.sampled_from(["yes", "no", "음, 그럴까?", "'; DROP TABLE vote; --", "<script>", "🦉 " * 40])


@dataclass
class Talk:
    """A question in a conversation of its own, with its replies."""

    person: str
    question: str
    replies: list[str] = field(default_factory=list)
    teach: str | None = None


@dataclass
class Person:
    """Somebody, as the model knows them."""

    id: int
    teach: str
    kind: str


class Life(RuleBasedStateMachine):
    """People come, ask, judge, allow and forbid, log in, are erased; nights go by; the file is opened again."""

    empty: ClassVar[Path]
    """A store in which nothing happened, to begin from."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "nightschool.db"
        shutil.copy(self.empty, self.path)
        self.store: Store = open_in(self.path)
        self.people = {"owner": Person(1, "on", "owner")}
        self.talks: dict[str, Talk] = {}
        self.votes: dict[str, list[int]] = {}
        self.rewrites: dict[str, str] = {}
        self.ranked: dict[str, bool] = {}
        self.requests: set[tuple[str, str]] = set()
        self.streaming: list[tuple[str, str]] = []
        self.learned: dict[str, set[tuple[str, str]]] = {}
        self.sessions: dict[str, str] = {}
        self.came = 0

    def person(self, pick: int) -> str:
        """Return somebody."""
        return sorted(self.people)[pick % len(self.people)]

    def reply(self, pick: int) -> tuple[str, Talk]:
        """Return a finished reply and its talk."""
        found = [(reply, talk) for talk in self.talks.values() for reply in talk.replies]
        return found[pick % len(found)]

    def has_replies(self) -> bool:
        """Say whether there is something to judge."""
        return any(talk.replies for talk in self.talks.values())

    def teaches(self, conversation: str) -> bool:
        """Say whether a conversation may teach, by the model."""
        talk = self.talks[conversation]
        return (talk.teach or self.people[talk.person].teach) == "on"

    @initialize(kinds=st.permutations(["account", "imported", "simulated"]))
    def begin(self, kinds: list[str]) -> None:
        """Give three people something to judge and something judged, so that short examples reach what matters."""
        for kind in kinds[:2]:
            self.come(kind)
        for who in range(len(self.people)):
            self.ask(who, "yes", "no")
            self.rewrite(2 * who, "perhaps")
        self.compare(0, ["left"])

    @rule(kind=st.sampled_from(["account", "imported", "simulated"]))
    def come(self, kind: Any) -> None:
        """Let somebody come."""
        self.came += 1
        added = self.store.people.add(f"p{self.came}", kind=kind)
        self.people[added.name] = Person(added.id, "unanswered" if kind == "account" else "on", kind)

    @rule(who=PICK, left=TEXT, right=TEXT)
    def ask(self, who: int, left: str, right: str) -> None:
        """Let somebody ask and get two answers."""
        name = self.person(who)
        question = ask(self.store, "What?", self.people[name].id)
        replies = [answer(self.store, question, text, self.people[name].id).id for text in (left, right)]
        self.talks[question.conversation_id] = Talk(name, question.id, replies)

    @precondition(lambda self: self.talks)
    @rule(which=PICK)
    def begin_reply(self, which: int) -> None:
        """Begin another answer, which nobody may judge yet."""
        talk = list(self.talks.values())[which % len(self.talks)]
        person = self.people[talk.person].id
        begun = self.store.conversations.begin_reply(talk.question, person, ORIGIN)
        with pytest.raises(BadInput):
            self.store.votes.rate(begun.id, person, 1)
        self.streaming.append((begun.id, begun.conversation_id))

    @precondition(lambda self: self.streaming)
    @rule(which=PICK, text=TEXT)
    def finish_reply(self, which: int, text: str) -> None:
        """Finish an answer, unless its chat is gone."""
        reply, conversation = self.streaming.pop(which % len(self.streaming))
        if conversation in self.talks:
            self.store.conversations.finish_reply(reply, text, "done", "end", 1)
            self.talks[conversation].replies.append(reply)
            return
        with pytest.raises(NotYours):
            self.store.conversations.finish_reply(reply, text, "done", "end", 1)

    @precondition(lambda self: self.has_replies())
    @rule(
        which=PICK, value=st.sampled_from([1, -1, 0]), request=st.sampled_from([None, "r1", "r2", "r3"]), comment=TEXT
    )
    def rate(self, which: int, value: int, request: str | None, comment: str) -> None:
        """Vote, change one's mind, take it back, or send the same request again."""
        reply, talk = self.reply(which)
        reasons = {1: REASONS_UP[:1], -1: REASONS_DOWN[:1], 0: ()}[value]
        person = self.people[talk.person].id
        before = self.store.votes.get(reply, person)
        if request and (talk.person, request) in self.requests:
            if before is None:
                with pytest.raises(BadInput, match="another reply"):
                    self.store.votes.rate(reply, person, value, reasons, comment, request)
            else:
                assert self.store.votes.rate(reply, person, value, reasons, comment, request) == before
            return
        after = self.store.votes.rate(reply, person, value, reasons, comment, request)
        assert (after.value, after.comment) == (value, comment if value else "")
        if request:
            self.requests.add((talk.person, request))
        self.votes.setdefault(reply, []).append(value)

    @precondition(lambda self: self.has_replies())
    @rule(which=PICK, who=PICK, text=TEXT)
    def meddle(self, which: int, who: int, text: str) -> None:
        """Judge what is somebody else's, or no reply: nothing is written."""
        reply, talk = self.reply(which)
        person = self.people[self.person(who)].id
        wrong = [talk.question, "nowhere"] if self.person(who) == talk.person else [reply, talk.question, "nowhere"]
        for message in wrong:
            with pytest.raises(StoreError):
                self.store.votes.rate(message, person, 1)
            with pytest.raises(StoreError):
                self.store.votes.rewrite(message, person, text)

    @precondition(lambda self: self.has_replies())
    @rule(which=PICK, text=TEXT)
    def rewrite(self, which: int, text: str) -> None:
        """Write a better answer."""
        reply, talk = self.reply(which)
        self.store.votes.rewrite(reply, self.people[talk.person].id, text)
        self.rewrites[reply] = text

    @precondition(lambda self: any(len(talk.replies) > 1 for talk in self.talks.values()))
    @rule(which=PICK, choices=st.lists(st.sampled_from(["left", "right", "tie", "both-bad"]), max_size=2))
    def compare(self, which: int, choices: list[Any]) -> None:
        """Choose between two answers, perhaps twice, perhaps never."""
        talks = [talk for talk in self.talks.values() if len(talk.replies) > 1]
        talk = talks[which % len(talks)]
        person = self.people[talk.person].id
        shown = self.store.votes.show_comparison(person, talk.question, *talk.replies[:2])
        for choice in choices:
            assert self.store.votes.choose(shown.id, person, choice).choice == choice

    @precondition(lambda self: any(len(talk.replies) > 1 for talk in self.talks.values()))
    @rule(which=PICK, ranks=st.lists(st.integers(1, 3), min_size=2, max_size=2), back=st.booleans())
    def rank(self, which: int, ranks: list[int], back: bool) -> None:
        """Put two answers in order, and perhaps take that back."""
        talks = [(key, talk) for key, talk in self.talks.items() if len(talk.replies) > 1]
        conversation, talk = talks[which % len(talks)]
        person = self.people[talk.person].id
        self.store.votes.rank(talk.question, person, dict(zip(talk.replies[:2], ranks, strict=True)))
        if back:
            assert self.store.votes.retract_ranking(talk.question, person).retracted
        self.ranked[conversation] = not back

    @rule(who=PICK, teach=st.sampled_from(["on", "off"]))
    def answer_for_all(self, who: int, teach: Any) -> None:
        """Allow or forbid to learn from somebody's chats."""
        name = self.person(who)
        self.store.consent.set_person(self.people[name].id, teach)
        self.people[name].teach = teach
        for talk in self.talks.values():
            if talk.person == name and teach == "off" and talk.teach == "on":
                talk.teach = None

    @precondition(lambda self: self.talks)
    @rule(which=PICK, teach=st.sampled_from(["on", "off", None]))
    def answer_for_one(self, which: int, teach: Any) -> None:
        """Allow or forbid to learn from one chat."""
        conversation = list(self.talks)[which % len(self.talks)]
        self.store.consent.set_conversation(conversation, self.people[self.talks[conversation].person].id, teach)
        self.talks[conversation].teach = teach

    @precondition(lambda self: len(self.talks) > 1)
    @rule(which=PICK)
    def delete(self, which: int) -> None:
        """Delete a chat with everything in it."""
        conversation = list(self.talks)[which % len(self.talks)]
        self.store.conversations.delete(conversation, self.people[self.talks[conversation].person].id)
        self.forget(conversation)

    @rule(which=PICK)
    def night(self, which: int) -> None:
        """Learn from everything that may be learned from, register the adapter, and try to put one live."""
        name = f"a{len(self.learned) + 1}"
        self.store.registry.start_run(f"run-{name}")
        pairs = list(self.store.votes.pairs())
        self.store.registry.record_training(f"run-{name}", [TrainItem(pair.person_id, pair.ids) for pair in pairs])
        self.store.registry.register_adapter(name, "base-1", f"run-{name}")
        names = {person.id: known for known, person in self.people.items()}
        self.learned[name] = {(names[pair.person_id], pair.conversation_id) for pair in pairs}
        wanted = sorted(self.learned)[which % len(self.learned)]
        live = self.store.registry.live()
        if self.tainted(wanted):
            with pytest.raises(TaintedAdapter):
                self.store.registry.promote(wanted, live.generation)
            assert self.store.registry.live() == live
        else:
            assert self.store.registry.promote(wanted, live.generation).adapter_id == wanted
        self.store.registry.finish_run(f"run-{name}", "promoted", adapter_id=name)

    def tainted(self, adapter: str) -> bool:
        """Say whether an adapter learned from somebody who has said no since, by the model."""
        for name, conversation in self.learned[adapter]:
            if name not in self.people:
                return True
            teach = self.talks[conversation].teach if conversation in self.talks else None
            if (teach or self.people[name].teach) != "on":
                return True
        return False

    @rule(who=PICK)
    def log_in(self, who: int) -> None:
        """Begin a session."""
        name = self.person(who)
        self.sessions[self.store.sessions.new_session(self.people[name].id)] = name

    @precondition(lambda self: self.sessions)
    @rule(which=PICK)
    def log_out(self, which: int) -> None:
        """End a session."""
        token = list(self.sessions)[which % len(self.sessions)]
        self.store.sessions.revoke_session(token)
        del self.sessions[token]

    @precondition(lambda self: len(self.people) > 1)
    @rule(who=PICK)
    def erase(self, who: int) -> None:
        """Erase somebody; a new owner follows an old one."""
        name = self.person(who)
        person = self.people[name]
        expected = sorted(a for a, whose in self.learned.items() if any(known == name for known, _ in whose))
        done = erase_user(self.store, name)
        assert done.clean and list(done.adapters) == expected
        del self.people[name]
        for conversation in [key for key, talk in self.talks.items() if talk.person == name]:
            self.forget(conversation)
        self.requests = {(known, request) for known, request in self.requests if known != name}
        self.sessions = {token: known for token, known in self.sessions.items() if known != name}
        for adapter in expected:
            others = {(known, talk) for known, talk in self.learned[adapter] if known != name}
            self.learned[adapter] = others | {("erased", "")}  # the next owner has the same name and taught nothing
        if person.kind == "owner":
            self.people["owner"] = Person(self.store.people.owner().id, "on", "owner")
        with pytest.raises(Withdrawn):
            self.store.registry.start_run(f"late-{self.came}-{person.id}")
            self.store.registry.record_training(f"late-{self.came}-{person.id}", [TrainItem(person.id, ("gone",))])

    def forget(self, conversation: str) -> None:
        """Let the model forget a chat."""
        talk = self.talks.pop(conversation)
        self.ranked.pop(conversation, None)
        for reply in talk.replies:
            self.votes.pop(reply, None)
            self.rewrites.pop(reply, None)
        with self.store.connections.read() as db:  # the requests that went with the chat may be used again
            used = db.execute("SELECT person_id, request_id FROM vote_event WHERE request_id IS NOT NULL").fetchall()
        names = {person.id: name for name, person in self.people.items()}
        self.requests = {(names[person], request) for person, request in used}

    @rule()
    def reopen(self) -> None:
        """Close the file and open it again: nothing has changed."""
        before = dump(self.path)
        self.store.close()
        self.store = open_in(self.path)
        assert dump(self.path) == before

    @invariant()
    def votes_are_the_ends_of_their_histories(self) -> None:
        """Compare the thumbs and their histories with the model's."""
        with self.store.connections.read() as db:
            votes = db.execute("SELECT message_id, value FROM vote").fetchall()
            last = "SELECT message_id, new FROM vote_event GROUP BY message_id, person_id HAVING id = max(id)"
            ends = db.execute(last).fetchall()
        assert sorted(votes) == sorted(ends) == sorted((reply, values[-1]) for reply, values in self.votes.items())

    @invariant()
    def examples_come_from_those_who_allow_it(self) -> None:
        """Compare where pairs, demonstrations and rankings come from with what the model allows."""
        pairs, shown = list(self.store.votes.pairs()), list(self.store.votes.demonstrations())
        assert all(self.teaches(example.conversation_id) for example in (*pairs, *shown))
        whose = {reply: key for key, talk in self.talks.items() for reply in talk.replies}
        allowed = {reply for reply in self.rewrites if self.teaches(whose[reply])}
        assert {example.ids[0] for example in shown} == allowed
        ranked = {key for key, counts in self.ranked.items() if counts and self.teaches(key)}
        assert {example.conversation_id for example in self.store.votes.rankings()} == ranked
        names = {person.id: name for name, person in self.people.items()}
        assert all(names[example.person_id] == self.talks[example.conversation_id].person for example in pairs)

    @invariant()
    def people_and_doors_are_as_the_model_knows_them(self) -> None:
        """Compare who there is, what they answered and whose sessions are whose."""
        assert {person.name: person.teach for person in self.store.people.all()} == {
            name: person.teach for name, person in self.people.items()
        }
        for token, name in self.sessions.items():
            person = self.store.sessions.person_of_session(token)
            assert person is not None and person.name == name

    @invariant()
    def taint_is_as_the_model_knows_it(self) -> None:
        """Compare which adapters may be used."""
        found = {adapter for adapter in self.learned if self.store.registry.tainted(adapter)}
        assert found == {adapter for adapter in self.learned if self.tainted(adapter)}

    def teardown(self) -> None:
        """Check the whole file, once an example."""
        problems = verify(self.store)
        self.store.close()
        self.folder.cleanup()
        assert problems == []


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    """Make the store that every example begins from."""
    store = open_store(tmp_path / "empty.db")
    store.close()
    Life.empty = store.path
    yield store.path


@pytest.mark.long
def test_whatever_people_do_the_store_agrees_with_the_model(empty: Path) -> None:
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=200,
            stateful_step_count=16,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
