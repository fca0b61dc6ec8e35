"""What AI judges said about replies: kept in tables of their own, so that no count or example of people's holds it.

A judge is a model with a written constitution; it is no person, owns no conversation and casts no vote. What it said
hangs on the replies: it goes when their conversation or person goes, and teaches only while these may be taught from.
Where somebody has judged the same replies, what an AI said of them is compared with it and teaches nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sqlite_utils import Database

from feedback_store.agreement import Agreement, Verdict, Verdicts, measure_counts
from feedback_store.checks import check_text
from feedback_store.connection import Connections, Row, one_row, rows
from feedback_store.consent import TEACHES, TEACHING
from feedback_store.examples import read_prompt
from feedback_store.records import Turn, utc_now

PREFIX = "ai:"
"""How the names of AI judges begin, and nobody else's."""
_SAID = """
    SELECT left_message_id AS left, right_message_id AS right, person_id, choice, chosen_at AS at
    FROM comparison WHERE choice IS NOT NULL
    UNION ALL
    SELECT one.message_id, other.message_id, person_id,
        CASE WHEN one.rank < other.rank THEN 'left' WHEN one.rank > other.rank THEN 'right' ELSE 'tie' END, ranked_at
    FROM ranking JOIN ranked_reply AS one ON one.ranking_id = ranking.id
    JOIN ranked_reply AS other ON other.ranking_id = ranking.id AND other.position > one.position
    WHERE NOT retracted
    UNION ALL
    SELECT chosen_message_id, rejected_message_id, person_id, 'left', created_at FROM preference
    UNION ALL
    SELECT up.message_id, down.message_id, up.person_id, 'left', max(up.updated_at, down.updated_at) FROM vote AS up
    JOIN message AS liked ON liked.id = up.message_id
    JOIN message AS other ON other.conversation_id = liked.conversation_id AND other.parent_id = liked.parent_id
    JOIN vote AS down ON down.message_id = other.id AND down.person_id = up.person_id
    WHERE up.value = 1 AND down.value = -1
    ORDER BY at"""
"""Every judgement of two replies by a person, oldest first; of several by one person the last counts."""
_COMPARABLE = f"""
    SELECT first.id AS first_id, second.id AS second_id, first.text AS first, second.text AS second,
        first.parent_id AS prompt_id, first.conversation_id, conversation.person_id, system_prompt.text AS system,
        first.seq AS first_seq, second.seq AS second_seq
    FROM message AS first
    JOIN message AS second ON second.conversation_id = first.conversation_id AND second.parent_id = first.parent_id
        AND second.seq > first.seq AND second.state = 'done'
    JOIN origin AS one ON one.message_id = first.id
    JOIN origin AS other ON other.message_id = second.id AND other.system_id = one.system_id
    JOIN system_prompt ON system_prompt.id = one.system_id
    JOIN conversation ON conversation.id = first.conversation_id
    WHERE first.role = 'assistant' AND first.state = 'done' AND trim(first.text) <> '' AND trim(second.text) <> ''
        AND first.text <> second.text AND first.conversation_id IN ({TEACHING})"""
_REVISABLE = f"""
    SELECT message.id, message.text, message.parent_id AS prompt_id, message.conversation_id, conversation.person_id,
        system_prompt.text AS system, message.seq,
        EXISTS (SELECT 1 FROM vote WHERE message_id = message.id AND value = -1) AS disliked
    FROM message
    JOIN origin ON origin.message_id = message.id
    JOIN system_prompt ON system_prompt.id = origin.system_id
    JOIN conversation ON conversation.id = message.conversation_id
    WHERE role = 'assistant' AND state = 'done' AND trim(message.text) <> '' AND {TEACHES.format("conversation_id")}
        AND NOT EXISTS (SELECT 1 FROM rewrite WHERE message_id = message.id)
        AND NOT EXISTS (SELECT 1 FROM demonstration WHERE message_id = message.id)
        AND NOT EXISTS (SELECT 1 FROM vote WHERE message_id = message.id AND value = 1)"""
_COUNTS = """
    SELECT (SELECT count(*) FROM ai_judge) AS judges, count(shown_first + shown_second) AS choices,
        coalesce(sum((shown_first - 0.5) * (shown_second - 0.5) <= 0), 0) AS ties,
        count(*) - count(shown_first + shown_second) AS unreadable,
        (SELECT count(text) FROM ai_rewrite) AS rewrites
    FROM ai_choice"""
_VERDICTS: Mapping[str, Verdict] = {"left": "first", "right": "second"}
_TURNED: Mapping[Verdict, Verdict] = {"first": "second", "second": "first", "neither": "neither"}


@dataclass(frozen=True)
class AiJudge:
    """A model with a constitution."""

    id: int
    name: str
    """`ai:`, the model, and the beginning of the SHA-256 of the constitution."""


@dataclass(frozen=True)
class ReplyPair:
    """Two finished replies to one prompt, in the order in which they were written."""

    ids: tuple[str, str]
    prompt: tuple[Turn, ...]
    first: str
    second: str
    person_id: int
    """Whose conversation it is."""
    conversation_id: str


@dataclass(frozen=True)
class AiChoice:
    """What a judge said of a pair."""

    pair: ReplyPair
    judge: str
    share: float
    """Probability that the first is the better one: 0.5 is a tie."""
    judged_by_people: bool
    """Somebody judged the same pair, and that alone teaches."""
    created_at: str


@dataclass(frozen=True)
class Reply:
    """A finished reply that nobody praised or rewrote."""

    id: str
    prompt: tuple[Turn, ...]
    text: str
    person_id: int
    conversation_id: str


@dataclass(frozen=True)
class AiRewrite:
    """What a judge would have answered instead of a reply."""

    reply: Reply
    judge: str
    text: str
    created_at: str


def share_of(shown_first: float, shown_second: float) -> float:
    """Return the probability that the first reply is better, from both orders; orders that disagree are a tie.

    Args:
        shown_first: share of answers for the first reply where it was shown first, 0 to 1.
        shown_second: the same where it was shown second.
    """
    if (shown_first - 0.5) * (shown_second - 0.5) <= 0:
        return 0.5
    return (shown_first + shown_second) / 2


class AiFeedback:
    """The tables of what AI judges said."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def judge(self, model: str, constitution: str) -> AiJudge:
        """Return the judge made of a model and a constitution, kept with the text from its first use on.

        Raises:
            BadInput: one of them is empty or cannot be stored.
        """
        check_text(model, "The judge's model", max_chars=200, may_be_empty=False)
        check_text(constitution, "The constitution", may_be_empty=False)
        name = f"{PREFIX}{model}:{hashlib.sha256(constitution.encode()).hexdigest()[:12]}"
        with self._connections.write() as db:
            db.execute(
                "INSERT INTO ai_judge(name, model, constitution, created_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                [name, model, constitution, utc_now()],
            )
            row = one_row(db, "SELECT id, name FROM ai_judge WHERE name = ?", [name])
        assert row is not None
        return AiJudge(row["id"], row["name"])

    def pairs_to_judge(self, judge: AiJudge | None = None) -> list[tuple[str, str]]:
        """Return the ids of the pairs that a judge has not seen yet: those that people judged, then the others.

        Args:
            judge: None for one who has seen nothing.
        """
        sql = f"""SELECT first_id, second_id FROM ({_COMPARABLE}) AS pair WHERE NOT EXISTS (
            SELECT 1 FROM ai_choice WHERE judge_id = ? AND first_message_id = first_id
                AND second_message_id = second_id) ORDER BY first_seq, second_seq"""
        with self._connections.snapshot() as db:
            pairs = [(row["first_id"], row["second_id"]) for row in rows(db, sql, [judge.id if judge else None])]
            said = _read_said(db)
        return sorted(pairs, key=lambda pair: pair not in said)

    def read_pair(self, first_id: str, second_id: str) -> ReplyPair | None:
        """Return a pair as it is now; None when it is gone or may not be taught from any more."""
        sql = f"SELECT * FROM ({_COMPARABLE} AND first.id = ?) AS pair WHERE second_id = ?"
        with self._connections.read() as db:
            row = one_row(db, sql, [first_id, second_id])
            return _pair(db, row) if row else None

    def add_choice(
        self,
        judge: AiJudge,
        ids: tuple[str, str],
        shown_first: float | None,
        shown_second: float | None,
        unparsable: int,
    ) -> None:
        """Store what a judge said of a pair; of one that is gone meanwhile nothing is stored.

        Args:
            shown_first: share of readable answers for the first reply where it was shown first; None without any.
            shown_second: the same where it was shown second.
            unparsable: answers that say neither.
        """
        with self._connections.write() as db:
            db.execute(
                "INSERT OR REPLACE INTO ai_choice(judge_id, first_message_id, second_message_id, shown_first,"
                " shown_second, unparsable, judged_at)"
                " SELECT ?, first.id, second.id, ?, ?, ?, ? FROM message AS first"
                " JOIN message AS second ON second.id = ? WHERE first.id = ?",
                [judge.id, shown_first, shown_second, unparsable, utc_now(), ids[1], ids[0]],
            )

    def choices(self) -> Iterator[AiChoice]:
        """Yield everything that judges said of pairs that may teach, ties too, oldest first, as at the first step."""
        with self._connections.snapshot() as db:
            yield from read_ai_choices(db)

    def replies_to_revise(self, judge: AiJudge | None = None) -> list[str]:
        """Return the ids of the replies that a judge has not revised yet: those that people disliked, first.

        Args:
            judge: None for one who has revised nothing.
        """
        sql = f"""SELECT id FROM ({_REVISABLE}) AS reply WHERE NOT EXISTS (
            SELECT 1 FROM ai_rewrite WHERE judge_id = ? AND message_id = reply.id) ORDER BY disliked DESC, seq"""
        with self._connections.snapshot() as db:
            return [row["id"] for row in rows(db, sql, [judge.id if judge else None])]

    def read_reply(self, message_id: str) -> Reply | None:
        """Return a reply as it is now; None when it is gone, may not be taught from, or somebody judged it well."""
        with self._connections.read() as db:
            row = one_row(db, f"{_REVISABLE} AND message.id = ?", [message_id])
            return _reply(db, row) if row else None

    def add_rewrite(self, judge: AiJudge, message_id: str, critique: str, text: str | None) -> None:
        """Store a judge's critique of a reply and the better reply; of one that is gone meanwhile nothing is stored.

        Args:
            text: None when there was nothing to better, or nothing better came.
        """
        check_text(critique, "The critique")
        if text is not None:
            check_text(text, "The rewritten reply", may_be_empty=False)
        with self._connections.write() as db:
            db.execute(
                "INSERT OR REPLACE INTO ai_rewrite(judge_id, message_id, critique, text, written_at)"
                " SELECT ?, id, ?, ?, ? FROM message WHERE id = ?",
                [judge.id, critique, text, utc_now(), message_id],
            )

    def rewrites(self) -> Iterator[AiRewrite]:
        """Yield every reply that a judge wrote anew and that may teach, oldest first, as at the first step."""
        with self._connections.snapshot() as db:
            yield from read_ai_rewrites(db)

    def agreement(self, judge: AiJudge) -> Agreement:
        """Measure how far a judge agrees with people: each person's judgement of a pair beside the judge's own."""
        both: Counter[Verdicts] = Counter()
        with self._connections.snapshot() as db:
            said = _read_said(db)
            sql = """SELECT first_message_id, second_message_id, shown_first, shown_second FROM ai_choice
                WHERE judge_id = ? AND shown_first IS NOT NULL AND shown_second IS NOT NULL"""
            for row in rows(db, sql, [judge.id]):
                mine = _verdict(share_of(row["shown_first"], row["shown_second"]))
                for theirs in said.get((row["first_message_id"], row["second_message_id"]), {}).values():
                    both[Verdicts.of((mine, theirs))] += 1
        return measure_counts(both)

    def counts(self) -> dict[str, int]:
        """Return how much AI judges said, ties among the choices."""
        with self._connections.read() as db:
            return read_ai_counts(db)


def read_ai_choices(db: Database) -> Iterator[AiChoice]:
    """Yield what judges said of pairs that may teach, oldest first."""
    sql = f"""SELECT pair.*, shown_first, shown_second, judged_at, ai_judge.name AS judge
        FROM ai_choice JOIN ai_judge ON ai_judge.id = judge_id
        JOIN ({_COMPARABLE}) AS pair ON first_id = first_message_id AND second_id = second_message_id
        WHERE shown_first IS NOT NULL AND shown_second IS NOT NULL ORDER BY judged_at, judge, first_id, second_id"""
    said = _read_said(db)
    for row in rows(db, sql):
        pair = _pair(db, row)
        share = share_of(row["shown_first"], row["shown_second"])
        yield AiChoice(pair, row["judge"], share, pair.ids in said, row["judged_at"])


def read_ai_rewrites(db: Database) -> Iterator[AiRewrite]:
    """Yield the replies that judges wrote anew and that may teach, oldest first."""
    sql = f"""SELECT reply.*, ai_rewrite.text AS better, written_at, ai_judge.name AS judge
        FROM ai_rewrite JOIN ai_judge ON ai_judge.id = judge_id JOIN ({_REVISABLE}) AS reply ON reply.id = message_id
        WHERE better IS NOT NULL AND better <> reply.text ORDER BY written_at, judge, reply.id"""
    for row in rows(db, sql):
        yield AiRewrite(_reply(db, row), row["judge"], row["better"], row["written_at"])


def read_ai_counts(db: Database) -> dict[str, int]:
    """Return how much AI judges said."""
    row = one_row(db, _COUNTS)
    assert row is not None
    return row


def _read_said(db: Database) -> dict[tuple[str, str], dict[int, Verdict]]:
    """Return what people said of each two replies, by person, under both orders of the two."""
    said: dict[tuple[str, str], dict[int, Verdict]] = {}
    for left, right, person_id, choice, _ in db.execute(_SAID):
        verdict = _VERDICTS.get(choice, "neither")
        said.setdefault((left, right), {})[person_id] = verdict
        said.setdefault((right, left), {})[person_id] = _TURNED[verdict]
    return said


def _verdict(share: float) -> Verdict:
    return "neither" if share == 0.5 else "first" if share > 0.5 else "second"


def _pair(db: Database, row: Row) -> ReplyPair:
    return ReplyPair(
        ids=(row["first_id"], row["second_id"]),
        prompt=read_prompt(db, row["system"], row["prompt_id"]),
        first=row["first"],
        second=row["second"],
        person_id=row["person_id"],
        conversation_id=row["conversation_id"],
    )


def _reply(db: Database, row: Row) -> Reply:
    return Reply(
        id=row["id"],
        prompt=read_prompt(db, row["system"], row["prompt_id"]),
        text=row["text"],
        person_id=row["person_id"],
        conversation_id=row["conversation_id"],
    )
