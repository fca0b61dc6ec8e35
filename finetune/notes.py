"""What was left out or changed on the way from votes to training, in words. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence

from finetune.examples import NIGHT_METHODS, Example, Method, learns_from, select_method

ONE_SIDED = (
    "All thumbs point the same way, and such thumbs alone teach nothing: they would push every reply up, or every "
    "reply down. Add some that point the other way, or votes of another kind."
)
_NOTES = {
    "repeated": "{} said the same as another and count once.",
    "equal": "{} had equal texts on both sides, so nothing was preferred; left out.",
    "ties": "{} preferred nothing (ties, or both bad); left out.",
    "contradictions": "{} times the very opposite was said, too; both stay, and as choices they cancel.",
    "by_side": "{} are by people who choose one side whatever stands there; left out.",
    "not_searched": "The search for slips came to numbers that are not finite, so all {} choices count alike; a lower "
    "NIGHTSCHOOL_NIGHT__REWARD_LEARNING_RATE may help.",
    "doubted": "{} choices contradict what the other choices have in common, and count less or not at all.",
    "one_sided_thumbs": "{} thumbs all point the same way; left out, since they would push every reply that way.",
    "thumbs_without_mismatch": "{} thumbs are on one and the same prompt, so KTO's divergence was taken as 0 for them.",
    "too_long": "{} prompts are longer than what fits with their replies; left out.",
    "dropped_turns": "{} of the oldest turns did not fit and were left out of their prompts.",
    "cut_lines": "{} lines of the text for --ptx were cut at the longest example.",
    "short_lines": "{} lines of the text for --ptx have fewer than two tokens; left out.",
    "cut_completions": "{} replies were cut at three quarters of the longest example.",
    "control_tokens": "{} control tokens that people typed were kept as plain text.",
    "anchors": "{} replies of the base were learned from, too, so that elsewhere it stays as it was.",
    "split_badly": "{} have replies in a language that the tokenizer splits into more tokens than characters.",
}
_KINDS = {
    "pair": "pairs",
    "ranking": "rankings",
    "demonstration": "demonstrations",
    "thumb-up": "thumbs up",
    "thumb-down": "thumbs down",
}
TAKES: Mapping[Method, str] = {
    "auto": "votes",
    "sft": "rewrites",
    "dpo": "choices",
    "ipo": "choices",
    "robust": "choices",
    "norm": "choices",
    "kto": "thumbs or choices",
    "rankings": "rankings",
    "reward": "choices",
    "ppo": "votes",
}
"""What each method learns from, in a word."""


def explain(counts: Mapping[str, int]) -> list[str]:
    """Say in a sentence each what was left out or changed; what did not happen is not mentioned."""
    return [words.format(counts[name]) for name, words in _NOTES.items() if counts.get(name)]


def explain_others(examples: Sequence[Example], method: Method) -> list[str]:
    """Say which examples are of a kind that a method does not learn from."""
    others = [example for example in examples if not learns_from(method, example)]
    return [f"--method {method} does not learn from {_count_kinds(others)}; left out."] if others else []


def why_nothing(examples: Sequence[Example], method: Method, ties: int = 0) -> str:
    """Say why a method finds nothing to learn from.

    Args:
        examples: what there is.
        method: what was asked for.
        ties: judgements that preferred nothing.
    """
    if not examples:
        tied = f"All {ties} judgements are ties" if ties else "No text is preferred to another one"
        return f"{tied}, so there is nothing to learn. Give votes that prefer something."
    fitting = [f"--method {other}" for other in NIGHT_METHODS if other != "ppo" and select_method(examples, other)]
    if not fitting or (method == "kto" and any(e.thumb is not None for e in examples)):
        return ONE_SIDED
    there = _count_kinds(examples)
    return f"--method {method} learns from {TAKES[method]}, and there are only {there}. Take {' or '.join(fitting)}."


def _count_kinds(examples: Sequence[Example]) -> str:
    held: Counter[str] = Counter(example.judgement for example in examples)
    return ", ".join(f"{held[kind]} {words}" for kind, words in _KINDS.items() if held[kind])
