"""Whether chats may teach the assistant: each person's answer, and a conversation's own where it differs.

What does not teach is never exported and never trained on; `TEACHING`, or `TEACHES`, is the one condition that every
query of examples rests on. Consent withdrawn later counts for training as if the person were erased: see taint.py.
"""

from typing import Literal

from feedback_store.checks import check_choice
from feedback_store.connection import Connections, one_row
from feedback_store.errors import BadInput, NotYours
from feedback_store.records import Teach, utc_now

TEACHING = """
    SELECT conversation.id FROM conversation JOIN person ON person.id = conversation.person_id
    WHERE coalesce(conversation.teach, person.teach) = 'on'"""
"""The ids of the conversations that may teach, as a subquery."""
TEACHES = """EXISTS (
    SELECT 1 FROM conversation AS taught JOIN person AS teacher ON teacher.id = taught.person_id
    WHERE taught.id = {} AND coalesce(taught.teach, teacher.teach) = 'on')"""
"""The same condition for one conversation, given SQL for its id: quicker where the rows are few or already found."""


class Consent:
    """What people answered when they were asked."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def of_person(self, person_id: int) -> Teach:
        """Return a person's answer.

        Raises:
            BadInput: there is no such person.
        """
        with self._connections.read() as db:
            row = one_row(db, "SELECT teach FROM person WHERE id = ?", [person_id])
        if row is None:
            raise BadInput("There is no such person; log in again.")
        answer: Teach = row["teach"]
        return answer

    def set_person(self, person_id: int, teach: Literal["on", "off"]) -> None:
        """Store a person's answer; off also takes back what they allowed for single conversations.

        Raises:
            BadInput: there is no such person, or it is no answer.
        """
        check_choice(teach, ("on", "off"), "The answer")
        with self._connections.write() as db:
            row = one_row(db, "SELECT teach FROM person WHERE id = ?", [person_id])
            if row is None:
                raise BadInput("There is no such person; log in again.")
            now = utc_now()
            if row["teach"] != teach:
                db.execute("UPDATE person SET teach = ?, teach_at = ? WHERE id = ?", [teach, now, person_id])
            if teach == "off":
                sql = "UPDATE conversation SET teach = NULL, teach_at = ? WHERE person_id = ? AND teach = 'on'"
                db.execute(sql, [now, person_id])

    def of_conversation(self, conversation_id: str, person_id: int) -> Literal["on", "off"] | None:
        """Return a conversation's own answer; None when it is as its person says.

        Raises:
            NotYours: absent or somebody else's.
        """
        sql = "SELECT teach FROM conversation WHERE id = ? AND person_id = ?"
        with self._connections.read() as db:
            row = one_row(db, sql, [conversation_id, person_id])
        if row is None:
            raise NotYours
        answer: Literal["on", "off"] | None = row["teach"]
        return answer

    def set_conversation(self, conversation_id: str, person_id: int, teach: Literal["on", "off"] | None) -> None:
        """Store a conversation's own answer.

        Args:
            teach: None for as its person says.

        Raises:
            NotYours: absent or somebody else's.
            BadInput: it is no answer.
        """
        if teach is not None:
            check_choice(teach, ("on", "off"), "The answer")
        with self._connections.write() as db:
            row = one_row(
                db, "SELECT teach FROM conversation WHERE id = ? AND person_id = ?", [conversation_id, person_id]
            )
            if row is None:
                raise NotYours
            if row["teach"] != teach:
                db.execute(
                    "UPDATE conversation SET teach = ?, teach_at = ? WHERE id = ?", [teach, utc_now(), conversation_id]
                )

    def teaches(self, conversation_id: str) -> bool:
        """Say whether a conversation may teach the assistant, all answers considered."""
        with self._connections.read() as db:
            return one_row(db, f"SELECT 1 WHERE ? IN ({TEACHING})", [conversation_id]) is not None
