"""Which words the web app needs of a language. One object a language, so that a missing word is a type error."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from assistant.engine import Place


class GateWords(NamedTuple):
    """A check of the gate in words; the sentences take the row's numbers {candidate} and {limit}."""

    name: str
    passed: str
    not_passed: str


@dataclass(frozen=True)
class Texts:
    """The words of one language. Places for values are written {name}."""

    language: str
    other_language: str
    other_language_name: str
    tagline: str
    chat_tab: str
    compare_tab: str
    rank_tab: str
    operate_tab: str
    # who is logged in
    logged_in_as: str
    to_password: str
    to_teaching: str
    log_out: str
    operators_only: str
    # teaching
    teach_on: str
    """Whether this person's chats teach; `teach_off` also for who was not asked yet."""
    teach_off: str
    teach_turn_on: str
    teach_turn_off: str
    teach_answered: Mapping[str, str]
    """Told after an answer about all chats: `on` or `off`."""
    teach_here_label: str
    teach_here: Mapping[str, str]
    """A conversation's own answer: `general`, `on` or `off`, in the order of the menu."""
    teach_here_answered: Mapping[str, str]
    teach_elsewhere: str
    """Said behind `teach_on` or `teach_off` on pages that have no switch of their own."""
    # chat
    new_conversation: str
    conversations: str
    untitled: str
    chat_placeholder: str
    message_label: str
    message_placeholder: str
    send: str
    stop: str
    retry: str
    version: str
    preset_label: str
    presets: Mapping[str, str]
    note_stopped: str
    note_failed: str
    note_interrupted: str
    empty_message: str
    too_long: str
    still_writing: str
    too_many_replies: str
    waits_its_turn: str
    """In the place of a reply while another one of the same person is being written."""
    next_in_line: str
    in_line: str
    """The same while those of other people are."""
    wait_s: str
    wait_min: str
    shut_out: str
    """To somebody who was erased or disabled while a reply of theirs was being written."""
    nothing_to_retry: str
    went_on: str
    failed_reply: str
    dropped_turns: str
    cut_at_limit: str
    # votes
    thumb_up: str
    thumb_down: str
    about_reply: str
    seed: str
    base_model: str
    adapter: str
    reasons_label: str
    reasons_label_down: str
    reasons: Mapping[str, str]
    comment_label: str
    comment_placeholder: str
    save_comment: str
    retract: str
    open_rewrite: str
    rewrite_label: str
    rewrite_info: str
    save_rewrite: str
    has_rewrite: str
    vote_saved: str
    vote_retracted: str
    vote_first: str
    not_votable: str
    rewrite_saved: str
    reload_page: str
    # compare
    compare_intro: str
    compare_placeholder: str
    compare_button: str
    left: str
    right: str
    choices: Mapping[str, str]
    choice_question: str
    choice_saved: str
    you_chose: str
    next_round: str
    no_comparison: str
    broken_off: str
    answers_under_way: str
    past_comparisons: str
    unanswered: str
    reopen_comparison: str
    # rank
    rank_intro: str
    rank_placeholder: str
    rank_button: str
    answer: str
    """The heading of one of the replies; {letter} names it."""
    place: str
    """Asks for the place of one of the replies; {letter} names it."""
    none_is_good: str
    save_order: str
    take_order_back: str
    order_saved: str
    order_taken_back: str
    place_each: str
    no_ranking: str
    alike: str
    """Told when the replies differ too little to be put in order."""
    alike_once: str
    rank_broken_off: str
    rank_under_way: str
    past_rankings: str
    ranked: str
    not_ranked: str
    # operate
    votes_title: str
    usable_votes: str
    usable_enough: str
    votes_missing: str
    votes_enough: str
    counts: Mapping[str, str]
    people_agree: str
    left_chosen: str
    votes_pace: str
    not_teaching: str
    live_title: str
    live_before: str
    nothing_before: str
    night_title: str
    retrain: str
    retrain_started: str
    retrain_running: str
    not_begun: str
    night_steps: Mapping[str, str]
    """By the first word of a phase in the run's progress file."""
    night_step: str
    """Any other phase."""
    progress: str
    time_left: str
    night_ends: Mapping[str, str]
    """By a run's outcome, or its state when it has none."""
    refresh: str
    adapter_choice: str
    promote: str
    rollback: str
    promoted: str
    already_live: str
    rolled_back: str
    runs_title: str
    no_runs: str
    run_outcomes: Mapping[str, str]
    gate_columns: tuple[str, str, str, str, str]
    gate_note: str
    gate_checks: Mapping[str, GateWords]
    """By the name of a check in the report; a check without words here keeps the report's, which are English."""
    run_reasons: Mapping[str, str]
    """What `run_reasons` of the operate page can say from numbers."""
    in_english: str
    """Said after a sentence that the night wrote, where the page's language is another one."""
    plot: str
    enlarge: str
    passed: str
    not_passed: str
    # errors
    adapter_errors: Mapping[type[Exception], str]
    """About an adapter that was to be promoted; `errors` speaks of the one that answers."""
    errors: Mapping[type[Exception], str]

    def waiting(self, own_first: bool, place: Place | None) -> str:
        """What a reply without text waits for; nothing where it has begun.

        Args:
            own_first: another reply of the same person is written first.
            place: where it stands in the engine's line.
        """
        if own_first:
            return self.waits_its_turn
        if place is None:
            return ""
        line = (self.in_line if place.ahead else self.next_in_line).format(count=place.ahead)
        if place.seconds is None:
            return line
        seconds = max(1, round(place.seconds))
        wait = self.wait_s.format(count=seconds) if seconds < 90 else self.wait_min.format(count=round(seconds / 60))
        return f"{line} {wait}"

    def error(self, error: Exception) -> str:
        """One sentence for an error: this language's where there is one, else the error's own."""
        return self.errors.get(type(error), str(error))

    def adapter_error(self, error: Exception) -> str:
        """One sentence about an adapter that was not promoted."""
        return self.adapter_errors.get(type(error), str(error))

    def adapter_name(self, adapter_id: str | None) -> str:
        """The base's name, or the adapter's id in words."""
        if adapter_id is None:
            return self.base_model
        # Adapters made by a night carry the word in their id.
        return adapter_id if adapter_id.startswith("adapter-") else f"{self.adapter} {adapter_id}"

    @staticmethod
    def escape(text: str) -> str:
        """Make text safe inside HTML."""
        return html.escape(text)
