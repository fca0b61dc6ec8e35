"""Replies to one prompt put in order by one person: written, read back, and read as examples to learn from.

Equal ranks are ties. `none_is_good` says that even the best is not worth imitating; the order still counts.
"""

import json
import secrets
from collections.abc import Iterator, Mapping

from sqlite_utils import Database

from feedback_store.checks import to_json
from feedback_store.connection import Row, one_row, rows
from feedback_store.consent import TEACHING
from feedback_store.errors import BadInput, NotYours
from feedback_store.examples import ANNOTATOR, read_prompt
from feedback_store.records import RankedReplies, Ranking, utc_now

MIN_REPLIES, MAX_REPLIES = 2, 9
_RANKINGS = f"""
    SELECT ranking.id, ranking.person_id, ranking.conversation_id, ranking.prompt_message_id, none_is_good, ranked_at,
        coalesce(imported.name, ranking.id) AS name, min(system_prompt.text) AS system,
        json_group_array(json_array(message.id, message.text, ranked_reply.rank) ORDER BY position) AS replies
    FROM ranking
    JOIN ranked_reply ON ranked_reply.ranking_id = ranking.id
    JOIN message ON message.id = ranked_reply.message_id
    JOIN origin ON origin.message_id = message.id
    JOIN system_prompt ON system_prompt.id = origin.system_id
    LEFT JOIN imported ON imported.kind = 'rankings' AND imported.row_id = ranking.id
    WHERE NOT ranking.retracted AND ranking.conversation_id IN ({TEACHING})
    GROUP BY ranking.id
    HAVING count(DISTINCT origin.system_id) = 1 AND count(*) >= {MIN_REPLIES}"""


def check_ranks(ranks: Mapping[str, int]) -> dict[str, int]:
    """Return the ranks without gaps, in the order given: 1 is best, equal ranks are ties.

    Raises:
        BadInput: there are not 2 to 9 replies, or a rank is no whole number from 1 to 9.
    """
    if not MIN_REPLIES <= len(ranks) <= MAX_REPLIES:
        raise BadInput(f"A ranking has {MIN_REPLIES} to {MAX_REPLIES} replies; it had {len(ranks)}.")
    if any(type(rank) is not int or not 1 <= rank <= MAX_REPLIES for rank in ranks.values()):
        raise BadInput(f"A rank must be a whole number from 1 (best) to {MAX_REPLIES}.")
    places = {rank: place for place, rank in enumerate(sorted(set(ranks.values())), 1)}
    return {message_id: places[rank] for message_id, rank in ranks.items()}


def write_ranking(
    db: Database,
    ranking_id: str | None,
    prompt: tuple[str, str],
    person_id: int,
    ranks: Mapping[str, int],
    none_is_good: bool,
    at: str,
) -> str:
    """Store a checked ranking, replacing the one of that id, and return its id.

    Args:
        ranking_id: None for a new one.
        prompt: the conversation's id and the id of the message that was answered.
        ranks: from check_ranks, in the order shown.
    """
    known = ranking_id is not None and one_row(db, "SELECT 1 FROM ranking WHERE id = ?", [ranking_id])
    key = ranking_id or secrets.token_hex(16)
    if known:
        db.execute(
            "UPDATE ranking SET none_is_good = ?, version = version + 1, ranked_at = ?, retracted = 0 WHERE id = ?",
            [none_is_good, at, key],
        )
        db.execute("DELETE FROM ranked_reply WHERE ranking_id = ?", [key])
    else:
        db.execute(
            "INSERT INTO ranking(id, person_id, conversation_id, prompt_message_id, none_is_good, version, ranked_at)"
            " VALUES (?, ?, ?, ?, ?, 1, ?)",
            [key, person_id, *prompt, none_is_good, at],
        )
    for position, (message_id, rank) in enumerate(ranks.items()):
        db.execute(
            "INSERT INTO ranked_reply(ranking_id, message_id, position, rank) VALUES (?, ?, ?, ?)",
            [key, message_id, position, rank],
        )
    db.execute(
        "INSERT INTO ranking_event(ranking_id, ranks, none_is_good, at) VALUES (?, ?, ?, ?)",
        [key, to_json(ranks, "Ranks"), none_is_good, at],
    )
    return key


def rank_replies(
    db: Database, prompt: tuple[str, str], person_id: int, ranks: Mapping[str, int], none_is_good: bool
) -> Ranking:
    """Store a person's ranking of replies to their own prompt; the last one counts, the same again changes nothing."""
    before = find_ranking(db, prompt[1], person_id)
    if before is None or before.retracted or (before.ranks, before.none_is_good) != (dict(ranks), none_is_good):
        write_ranking(db, before.id if before else None, prompt, person_id, ranks, none_is_good, utc_now())
    after = find_ranking(db, prompt[1], person_id)
    assert after is not None
    return after


def retract_ranking(db: Database, prompt_message_id: str, person_id: int) -> Ranking:
    """Take a person's ranking back; what it said stays with its history, a second time changes nothing.

    Raises:
        NotYours: they ranked nothing there.
    """
    before = find_ranking(db, prompt_message_id, person_id)
    if before is None:
        raise NotYours
    if not before.retracted:
        now = utc_now()
        db.execute(
            "UPDATE ranking SET retracted = 1, version = version + 1, ranked_at = ? WHERE id = ?", [now, before.id]
        )
        db.execute(
            "INSERT INTO ranking_event(ranking_id, ranks, none_is_good, at, retracted) VALUES (?, ?, ?, ?, 1)",
            [before.id, to_json(before.ranks, "Ranks"), before.none_is_good, now],
        )
    after = find_ranking(db, prompt_message_id, person_id)
    assert after is not None
    return after


def find_ranking(db: Database, prompt_message_id: str, person_id: int) -> Ranking | None:
    """Return a person's ranking of the replies to a message."""
    sql = "SELECT * FROM ranking WHERE prompt_message_id = ? AND person_id = ? ORDER BY seq LIMIT 1"
    row = one_row(db, sql, [prompt_message_id, person_id])
    if row is None:
        return None
    sql = "SELECT message_id, rank FROM ranked_reply WHERE ranking_id = ? ORDER BY position"
    return Ranking(
        id=row["id"],
        person_id=row["person_id"],
        conversation_id=row["conversation_id"],
        prompt_message_id=row["prompt_message_id"],
        ranks={reply["message_id"]: reply["rank"] for reply in rows(db, sql, [row["id"]])},
        none_is_good=bool(row["none_is_good"]),
        version=row["version"],
        ranked_at=row["ranked_at"],
        retracted=bool(row["retracted"]),
    )


def read_rankings(db: Database) -> Iterator[RankedReplies]:
    """Yield the rankings that may teach one at a time, oldest first."""
    for row in rows(db, f"{_RANKINGS} ORDER BY ranked_at, name, {ANNOTATOR.format('ranking.person_id')}"):
        yield _ranked_replies(db, row)


def _ranked_replies(db: Database, row: Row) -> RankedReplies:
    replies = json.loads(row["replies"])
    return RankedReplies(
        key=row["name"],
        prompt=read_prompt(db, row["system"], row["prompt_message_id"]),
        completions=tuple(text for _, text, _ in replies),
        ranks=tuple(rank for _, _, rank in replies),
        none_is_good=bool(row["none_is_good"]),
        person_id=row["person_id"],
        conversation_id=row["conversation_id"],
        created_at=row["ranked_at"],
        ids=tuple(message_id for message_id, _, _ in replies),
    )
