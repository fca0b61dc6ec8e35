"""Every word the web app says: English here, Korean beside it, and which of the two a reader gets."""

from collections.abc import Mapping
from typing import Final

from ui.korean import KOREAN
from ui.words import Texts

__all__ = ["ENGLISH", "KOREAN", "LANGUAGES", "TEXTS", "Texts", "preferred_language"]

LANGUAGES: Final = ("en", "ko")

ENGLISH: Final = Texts(
    language="en",
    other_language="ko",
    other_language_name="한국어",
    tagline="Learns nightly from your votes",
    chat_tab="Chat",
    compare_tab="Compare",
    operate_tab="Operate",
    logged_in_as="Logged in as {name}",
    to_password="Password",
    to_teaching="Teaching",
    log_out="Log out",
    operators_only="Only operators may do that; ask one of them.",
    teach_on="Your chats and votes teach the assistant at night.",
    teach_off="Your chats and votes teach the assistant nothing.",
    teach_turn_on="Turn on",
    teach_turn_off="Turn off",
    teach_answered={
        "on": "From the next night on, your chats and votes teach the assistant.",
        "off": "From now on, none of your chats teach; what was learned from them is left out of the next nights.",
    },
    teach_here_label="Use this conversation to teach",
    teach_here={
        "general": "This chat: as in general",
        "on": "This chat may teach",
        "off": "This chat teaches nothing",
    },
    teach_here_answered={
        "general": "This conversation follows what you say in general.",
        "on": "This conversation may teach the assistant from the next night on.",
        "off": "This conversation teaches nothing; what was learned from it is left out of the next nights.",
    },
    new_conversation="New conversation",
    conversations="Conversations",
    untitled="New conversation",
    chat_placeholder="### What would you like to work out?\nAsk anything, and say which answers are good.",
    message_label="Your message",
    message_placeholder="Write a message",
    send="Send",
    stop="Stop",
    retry="↻ Retry",
    version="{version} of {versions}",
    preset_label="How it answers",
    presets={"plain": "Plain", "socratic": "Socratic tutor"},
    note_stopped="Stopped here.",
    note_failed="This reply failed. Retry asks again.",
    note_interrupted="The app was closed while this was being written.",
    empty_message="Write a message first; this one is empty.",
    too_long="This message has {chars:,} characters and {limit:,} fit. Shorten it and send it again.",
    still_writing="A reply is still being written. Wait for its end, or press Stop.",
    too_many_replies="As many replies as you may have at once are being written. Wait for one to end, then send again.",
    shut_out="This ended because your account was erased or disabled. Reload the page, or ask an operator.",
    nothing_to_retry="There is no finished reply to retry yet.",
    went_on="This conversation went on in another tab; here is its newest state.",
    failed_reply="The reply failed on the way. Your message is kept; Retry asks again.",
    dropped_turns="This conversation outgrew the model's memory: its {count} earliest turns were left out here.",
    cut_at_limit="The reply reached its length limit. Ask it to go on.",
    thumb_up="👍 Good answer",
    thumb_down="👎 Not good",
    about_reply="Reply {place} of {of}",
    seed="seed",
    base_model="Base model",
    adapter="Adapter",
    reasons_label="What was good about it?",
    reasons_label_down="What was wrong with it?",
    reasons={
        "correct": "Correct",
        "clear": "Clear",
        "complete": "Complete",
        "right_tone": "Right tone",
        "wrong": "Wrong",
        "unclear": "Unclear",
        "too_long": "Too long",
        "ignored_instruction": "Ignored what I asked",
        "told_the_answer": "Told the answer",
        "bad_tone": "Bad tone",
        "other": "Other",
    },
    comment_label="Comment",
    comment_placeholder="Add a comment (optional)",
    save_comment="Save",
    retract="Take vote back",
    open_rewrite="✎ Write a better answer",
    rewrite_label="Your better answer",
    rewrite_info="Change its answer, or write your own. Where your chats teach, the model learns from it directly.",
    save_rewrite="Save my answer",
    has_rewrite="has your better answer",
    vote_saved="Your vote is saved.",
    vote_retracted="Your vote is taken back.",
    vote_first="Choose a thumb first, then say why.",
    not_votable="Votes are for finished replies. Wait for its end, or retry.",
    rewrite_saved="Your answer is saved. Thank you.",
    reload_page="The page is out of date. Reload it and vote again.",
    compare_intro="One prompt, two answers from the same model. Which would you rather have?",
    compare_placeholder="Write a prompt to compare two answers",
    compare_button="Compare",
    left="Left",
    right="Right",
    choices={"left": "← Left is better", "right": "Right is better →", "tie": "Equally good", "both-bad": "Both bad"},
    choice_question="Which answer is better?",
    choice_saved="Your choice is saved.",
    you_chose="You chose: {choice}",
    next_round="Next",
    no_comparison="One of the answers has no proper end, so there is nothing to choose. Press Compare to try again.",
    broken_off="The last comparison was stopped before both answers had ended. Its prompt is in the box: ask it again.",
    answers_under_way="The two answers to this are still being written; the choice comes here when they have ended.",
    past_comparisons="Your comparisons",
    unanswered="not answered yet",
    reopen_comparison="Not answered yet: choose one to answer it",
    votes_title="Votes so far",
    usable_votes="{usable} of {needed} usable examples",
    usable_enough="{usable} usable examples ({needed} are needed)",
    votes_missing="{missing} more until a night can train.",
    votes_enough="Enough for a night.",
    counts={
        "thumbs_up": "Thumbs up",
        "thumbs_down": "Thumbs down",
        "comparisons": "Comparisons",
        "rewrites": "Better answers",
        "pairs": "Preference pairs",
        "replies": "Replies",
    },
    people_agree="People who judge the same two answers agree in {percent:.0f} % ({items:,} pairs, Fleiss' κ {kappa}).",
    left_chosen="Of the sides chosen, {percent:.0f} % are the left one (95 % interval {low:.0f} to {high:.0f} %).",
    votes_pace="The median voter gives {pace:.1f} votes a minute.",
    not_teaching="People whose chats do not teach: {people:,}.",
    live_title="Answering now",
    live_before="Before: {adapter}",
    nothing_before="Nothing was promoted yet.",
    night_title="The night",
    retrain="Retrain now",
    retrain_started="Training has started.",
    retrain_running="A training run is under way already.",
    not_begun="The night did not begin: {last}",
    night_steps={
        "anchors": "Writing down how the model answers now",
        "reference": "Reading the votes",
        "train": "Learning from the votes",
        "examine": "Examining what was learned",
        "promote": "Putting it live",
    },
    night_step="Working",
    progress="{words}: {step} of {total}",
    time_left="about {minutes} min left for this step",
    night_ends={
        "promoted": "The last night has ended: its adapter passed every check and was put live.",
        "refused": "The last night has ended: its adapter was not put live, for the reason below.",
        "skipped": "The last night was skipped, for the reason below.",
        "failed": "The last night failed, for the reason below; what answers is what answered before.",
        "crashed": "The last night was broken off; what answers is what answered before. Retrain now repeats it.",
    },
    refresh="Refresh",
    adapter_choice="Which one should answer",
    promote="Promote",
    rollback="Roll back",
    promoted="{adapter} answers from the next message on.",
    already_live="{adapter} answers already; nothing was changed.",
    rolled_back="Rolled back: {adapter} answers from the next message on.",
    runs_title="Last nights",
    no_runs="No night has run yet.",
    run_outcomes={
        "promoted": "promoted",
        "refused": "refused",
        "skipped": "skipped",
        "failed": "failed",
        "running": "running",
        "crashed": "crashed",
    },
    gate_columns=("Check", "Live", "Candidate", "Limit", "Result"),
    gate_note=(
        "The limit is what the candidate must keep to: for the accuracy, how far below the live adapter it may fall at "
        "worst; for the perplexity and the replies, the most that is allowed. It is promoted when every check passes."
    ),
    gate_checks={},
    run_reasons={},
    in_english="",
    plot="Plot of the training",
    enlarge="Open in full size",
    passed="passed",
    not_passed="not passed",
    adapter_errors={},
    errors={},
)

TEXTS: Final[Mapping[str, Texts]] = {"en": ENGLISH, "ko": KOREAN}


def preferred_language(accept_language: str) -> str:
    """Choose from an Accept-Language header: the first language that the app speaks, else English."""
    weighted = []
    for place, item in enumerate(accept_language.split(",")[:20]):
        tag, _, quality = item.strip().partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            weight = 0.0
        weighted.append((-weight, place, tag.split("-")[0].lower()))
    for _, _, language in sorted(weighted):
        if language in LANGUAGES:
            return language
    return "en"
