"""What people think of replies: thumbs, side-by-side choices, rewritten answers.

A judgement names replies by id only; text, prompt and settings always come from the messages themselves.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

from sqlite_utils import Database

from feedback_store import comparisons, examples, rankings
from feedback_store.checks import MAX_COMMENT_CHARS, check_choice, check_text, to_json
from feedback_store.connection import Connections, Row, one_row, rows
from feedback_store.conversations import own_message
from feedback_store.errors import BadInput
from feedback_store.overview import Overview, read_overview
from feedback_store.records import (
    REASONS_DOWN,
    REASONS_UP,
    Choice,
    Comparison,
    Demonstration,
    Message,
    PreferencePair,
    RankedReplies,
    Ranking,
    RatedReply,
    Rewrite,
    Vote,
    utc_now,
)


def _vote(row: Row) -> Vote:
    return Vote(
        message_id=row["message_id"],
        person_id=row["person_id"],
        value=row["value"],
        reasons=tuple(json.loads(row["reasons"])),
        comment=row["comment"],
        version=row["version"],
        updated_at=row["updated_at"],
    )


def _find_vote(db: Database, message_id: str, person_id: int) -> Vote | None:
    row = one_row(db, "SELECT * FROM vote WHERE message_id = ? AND person_id = ?", [message_id, person_id])
    return _vote(row) if row else None


def _check_reasons(value: int, reasons: Sequence[str]) -> tuple[str, ...]:
    allowed = {1: REASONS_UP, -1: REASONS_DOWN, 0: ()}[value]
    kept = tuple(dict.fromkeys(reasons)) if value else ()
    for reason in kept:
        check_choice(reason, allowed, "A reason")
    return kept


def _finished_reply(db: Database, message_id: str, person_id: int) -> Message:
    reply = own_message(db, message_id, person_id)
    if reply.role != "assistant":
        raise BadInput("Only a reply can be judged, not a person's own message.")
    if reply.state not in ("done", "stopped"):
        raise BadInput("Only a finished reply can be judged; wait for its end or ask again.")
    if not reply.text.strip():
        raise BadInput("An empty reply cannot be judged; ask again.")
    return reply


class Votes:
    """The judgements, each of one person about replies in that person's own conversations."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def rate(
        self,
        message_id: str,
        person_id: int,
        value: int,
        reasons: Sequence[str] = (),
        comment: str = "",
        request_id: str | None = None,
    ) -> Vote:
        """Store a thumb; the last one of a person on a reply counts.

        Args:
            value: 1 up, -1 down, 0 takes it back together with its reasons and comment.
            reasons: keys of REASONS_UP or REASONS_DOWN, by the value.
            request_id: names this press; the same one again changes nothing, however late it comes.

        Raises:
            NotYours: the reply is absent or in somebody else's conversation.
            BadInput: it is not a finished reply, or a value is not allowed. Nothing is written.
        """
        if type(value) is not int or value not in (-1, 0, 1):  # False is an int too, and no retraction
            raise BadInput("A vote's value must be 1, -1 or 0.")
        kept = _check_reasons(value, reasons)
        check_text(comment, "The comment", max_chars=MAX_COMMENT_CHARS)
        if request_id is not None:
            check_text(request_id, "The request id", max_chars=200, may_be_empty=False)
        comment = comment if value else ""
        with self._connections.write() as db:
            _finished_reply(db, message_id, person_id)
            before = _find_vote(db, message_id, person_id)
            if request_id is not None and _seen(db, person_id, request_id):
                if before is None:
                    raise BadInput("That request was used for another reply; send a new request id.")
                return before
            same = before is not None and (before.value, before.reasons, before.comment) == (value, kept, comment)
            if before is not None and same and request_id is None:
                return before
            old = before.value if before else None
            _write_vote(db, message_id, person_id, value, kept, comment, request_id, old=old, same=same)
            after = _find_vote(db, message_id, person_id)
        assert after is not None
        return after

    def get(self, message_id: str, person_id: int) -> Vote | None:
        """Return a person's thumb on a reply, taken back or not."""
        with self._connections.read() as db:
            return _find_vote(db, message_id, person_id)

    def for_messages(self, message_ids: Sequence[str], person_id: int) -> dict[str, Vote]:
        """Return a person's thumbs on these replies, by message id."""
        sql = "SELECT * FROM vote WHERE person_id = ? AND message_id IN (SELECT value FROM json_each(?))"
        with self._connections.read() as db:
            votes = [_vote(row) for row in rows(db, sql, [person_id, to_json(list(message_ids), "Message ids")])]
        return {vote.message_id: vote for vote in votes}

    def show_comparison(
        self,
        person_id: int,
        prompt_message_id: str,
        left_message_id: str,
        right_message_id: str,
        hidden: Sequence[str] = comparisons.HIDDEN,
    ) -> Comparison:
        """Store that two replies were put side by side, and which side each was on.

        Args:
            hidden: what the person does not see of the two until the choice.

        Raises:
            NotYours: one of the three is absent or in somebody else's conversation.
            BadInput: the two are not different replies to that prompt; a choice would mean nothing.
        """
        with self._connections.write() as db:
            return comparisons.show(db, person_id, prompt_message_id, (left_message_id, right_message_id), hidden)

    def choose(self, comparison_id: str, person_id: int, choice: Choice, *, named: bool = False) -> Comparison:
        """Store the choice between two replies; it may be changed, and its history is kept.

        Args:
            named: whether a choice is answered with what each side was, so that the first one stands.

        Raises:
            ChoiceStands: another choice after that.
            NotYours: the comparison is absent or was shown to somebody else.
            BadInput: a reply is not finished, or the choice is none of CHOICES.
        """
        with self._connections.write() as db:
            return comparisons.choose(db, comparison_id, person_id, choice, named)

    def comparisons(self, person_id: int, limit: int = 50) -> list[Comparison]:
        """Return a person's comparisons, newest first."""
        with self._connections.read() as db:
            return comparisons.read_comparisons(db, person_id, limit)

    def rank(
        self, prompt_message_id: str, person_id: int, ranks: Mapping[str, int], none_is_good: bool = False
    ) -> Ranking:
        """Store the order in which a person puts 2 to 9 replies to one message; the last order counts.

        Args:
            ranks: by message id, in the order shown; 1 is best, equal ranks are ties.
            none_is_good: even the best is not worth imitating; the order still counts.

        Raises:
            NotYours: the message or a reply is absent or in somebody else's conversation.
            BadInput: a reply is not finished or answers another message, or a rank is not allowed.
        """
        checked = rankings.check_ranks(ranks)
        with self._connections.write() as db:
            prompt = own_message(db, prompt_message_id, person_id)
            for message_id in checked:
                if _finished_reply(db, message_id, person_id).parent_id != prompt.id:
                    raise BadInput("A ranking needs replies to one and the same message.")
            return rankings.rank_replies(
                db, (prompt.conversation_id, prompt.id), person_id, checked, bool(none_is_good)
            )

    def retract_ranking(self, prompt_message_id: str, person_id: int) -> Ranking:
        """Take a ranking back: it teaches nothing any more, and its history is kept. Ranking again undoes it.

        Raises:
            NotYours: the person ranked no replies to such a message.
        """
        with self._connections.write() as db:
            return rankings.retract_ranking(db, prompt_message_id, person_id)

    def get_ranking(self, prompt_message_id: str, person_id: int) -> Ranking | None:
        """Return the order in which a person put the replies to a message, taken back or not."""
        with self._connections.read() as db:
            return rankings.find_ranking(db, prompt_message_id, person_id)

    def rewrite(self, message_id: str, person_id: int, text: str) -> Rewrite:
        """Store what the person would have answered; the last text counts.

        Raises:
            NotYours: the reply is absent or in somebody else's conversation.
            BadInput: it is not a finished reply, or the text is empty or cannot be stored.
        """
        check_text(text, "The rewritten reply", may_be_empty=False)
        with self._connections.write() as db:
            _finished_reply(db, message_id, person_id)
            db.execute(
                "INSERT INTO rewrite(message_id, person_id, text, updated_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET text = excluded.text, updated_at = excluded.updated_at"
                " WHERE text <> excluded.text",
                [message_id, person_id, text, utc_now()],
            )
            found = _find_rewrite(db, message_id, person_id)
        assert found is not None
        return found

    def get_rewrite(self, message_id: str, person_id: int) -> Rewrite | None:
        """Return what a person would have answered instead of a reply."""
        with self._connections.read() as db:
            return _find_rewrite(db, message_id, person_id)

    def pairs(self) -> Iterator[PreferencePair]:
        """Yield every preference that the judgements hold, oldest first, as they are at the first step.

        Chosen comparisons; opposite thumbs of one person on replies to one message; rewritten replies against the
        originals. Left out: equal or empty texts, and replies under different system prompts, because they answered
        different prompts.
        """
        with self._connections.snapshot() as db:
            yield from examples.read_pairs(db)

    def demonstrations(self) -> Iterator[Demonstration]:
        """Yield every rewritten reply with its prompt, oldest first, as they are at the first step."""
        with self._connections.snapshot() as db:
            yield from examples.read_demonstrations(db)

    def thumbs(self) -> Iterator[RatedReply]:
        """Yield every thumb that was not taken back with its prompt and reply, oldest first, as at the first step.

        Among them are the opposite thumbs on replies to one message, which `pairs` gives as preferences, too.
        """
        with self._connections.snapshot() as db:
            yield from examples.read_thumbs(db)

    def rankings(self) -> Iterator[RankedReplies]:
        """Yield every ranking with its prompt and replies, oldest first, as they are at the first step.

        Left out: those taken back, and replies under different system prompts, because they answered different prompts.
        """
        with self._connections.snapshot() as db:
            yield from rankings.read_rankings(db)

    def counts(self) -> dict[str, int]:
        """Return how much of everything there is, all counted at the same moment."""
        with self._connections.read() as db:
            return examples.read_counts(db)

    def overview(self) -> Overview:
        """Return the counts, and how people vote: agreement, sides, pace; each as it is at one moment."""
        return read_overview(self._connections)


def _write_vote(
    db: Database,
    message_id: str,
    person_id: int,
    value: int,
    reasons: tuple[str, ...],
    comment: str,
    request_id: str | None,
    *,
    old: int | None,
    same: bool,
) -> None:
    """Add to the history, and to the vote itself unless it is the same again."""
    now, stored = utc_now(), to_json(reasons, "Reasons")
    db.execute(
        "INSERT INTO vote_event(request_id, message_id, person_id, old, new, reasons, comment, at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [request_id, message_id, person_id, old, value, stored, comment, now],
    )
    if not same:
        db.execute(
            "INSERT INTO vote(message_id, person_id, value, reasons, comment, version, updated_at)"
            " VALUES (?, ?, ?, ?, ?, 1, ?) ON CONFLICT DO UPDATE SET value = excluded.value,"
            " reasons = excluded.reasons, comment = excluded.comment, version = version + 1,"
            " updated_at = excluded.updated_at",
            [message_id, person_id, value, stored, comment, now],
        )


def _seen(db: Database, person_id: int, request_id: str) -> bool:
    sql = "SELECT 1 FROM vote_event WHERE person_id = ? AND request_id = ?"
    return one_row(db, sql, [person_id, request_id]) is not None


def _find_rewrite(db: Database, message_id: str, person_id: int) -> Rewrite | None:
    row = one_row(db, "SELECT * FROM rewrite WHERE message_id = ? AND person_id = ?", [message_id, person_id])
    return Rewrite(row["message_id"], row["person_id"], row["text"], row["updated_at"]) if row else None
