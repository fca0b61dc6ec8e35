"""A planted preference under noise: python -m bench.planted [--seeds 1 2 3] [--json]

Simulated people like replies that end with a question. They compare two replies to each of 400 problems, left and right
by lot; three in ten of their choices are slips, and a fifth of all votes are by somebody who always takes the left one.
A night learns from the stored votes with its defaults, and plain DPO (no slips assumed or looked for, no imitation, no
anchors, nobody left out) from the same ones. Both are examined on clean labels, on problems of other kinds that nobody
voted on, in the form that people are served.

Replies are written here, of one to three sentences about things of their problem. Any sentence but the last may be a
question in either reply, so that neither a question mark nor a length tells them apart.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from assistant.loading import Base, load_served, resolve_base
from assistant.presets import PLAIN
from assistant.prompt import template_hash
from assistant.settings import NightSettings, Settings, load_settings
from bench.pairs import example_of, plain_prompt
from feedback_store import Store, open_store
from feedback_store.records import Origin
from finetune.batches import encode_examples
from finetune.collect import collect_votes, divide_votes
from finetune.evaluate import rank_preferences, score_rows, served_cache
from finetune.examples import Example
from finetune.problems import Kind, Problem, make_problems
from finetune.problems_unseen import TEST_KINDS
from finetune.problems_voted import VOTED_KINDS
from finetune.progress import ProgressBar
from finetune.raters import tonights_votes
from finetune.workshop import train_and_write

VOTES, EXAMINED = 400, 240
SLIP_RATE = 0.3
PEOPLE = 5
"""Who vote in turn, the last one of them for the left."""
SENTENCES = (1, 2, 2, 3, 3)
QUESTION_SHARE = 0.35
"""Of the sentences before the last one."""
ORIGIN = Origin(None, "written", "none", PLAIN.key, PLAIN.system, 0.7, 0.95, 64, 0)
PLAIN_DPO = {
    "find_slips": False,
    "dpo_weight": 1.0,
    "nll_weight": 0.0,
    "label_smoothing": 0.0,
    "anchor_share": 0.0,
}

QUESTIONS = (
    "What does {thing} stand for in this problem?",
    "Which words in the text tell you something about {thing}?",
    "How would you begin if {thing} were all that you knew?",
    "Can you say in your own words what {thing} has to do with the rest?",
    "What would come out differently without {thing}?",
    "Where would {thing} be in a small drawing of this?",
    "Have you met a problem with something like {thing} before, and what did you do there?",
)
STATEMENTS = (
    "The text gives you {thing}, and that is a good place to begin.",
    "Write {thing} down first and keep it in view while you work.",
    "It helps to look at {thing} before anything else in the text.",
    "A small drawing with {thing} in it makes this much easier to see.",
    "Most of this problem hangs on {thing} and on what is said of it.",
    "Take your time with {thing}, because most slips happen there.",
    "Once you know what to do with {thing}, you can tell what {thing} has to do with the rest.",
)


@dataclass(frozen=True)
class Learned:
    """One adapter on clean labels."""

    accuracy: float
    low: float
    high: float
    examples: int
    """That it was trained on."""
    minutes: float
    """Of training: anchors, search for slips and reference included."""


@dataclass(frozen=True)
class Planted:
    """What one seed gave."""

    seed: int
    n: int
    night: Learned
    plain: Learned
    by_side: int
    """Votes that the night left out because their person takes one side."""


def write_reply(problem: Problem, asks: bool, rng: random.Random, question_share: float = QUESTION_SHARE) -> str:
    """Write a reply that ends with a question, or with a statement; of the sentences before, so many are questions."""
    count = rng.choice(SENTENCES)
    kinds = [rng.random() < question_share for _ in range(count - 1)] + [asks]
    questions = iter(rng.sample([*QUESTIONS, *problem.questions], count))
    statements = iter(rng.sample(STATEMENTS, count))
    things = problem.things or ("the last sentence",)
    written = [next(questions if asked else statements).replace("{thing}", rng.choice(things)) for asked in kinds]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in written)


def write_pairs(problems: Sequence[Problem], rng: random.Random) -> list[Example]:
    """Write two replies to each problem, the one that ends with a question first."""
    return [
        example_of(
            plain_prompt(problem.text),
            [write_reply(problem, asks, rng) for asks in (True, False)],
        )
        for problem in problems
    ]


def cast_votes(store: Store, pairs: Sequence[Example], rng: random.Random) -> None:
    """Let simulated people compare the two replies of every pair."""
    people = [store.people.add(f"simulated-{n}", kind="simulated").id for n in range(PEOPLE)]
    with store.connections.write():
        for number, pair in enumerate(rng.sample(pairs, len(pairs))):
            person = people[number % PEOPLE]
            talk = store.conversations.start(person, kind="compare")
            asked = store.conversations.add_user_message(talk.id, person, pair.prompt[-1]["content"])
            replies = []
            for text in pair.completions:
                reply = store.conversations.begin_reply(asked.id, person, ORIGIN)
                store.conversations.finish_reply(reply.id, text, "done", "stop", 40)
                replies.append(reply.id)
            good_left, slips = rng.random() < 0.5, rng.random() < SLIP_RATE
            shown = store.votes.show_comparison(person, asked.id, *(replies if good_left else replies[::-1]))
            left = person == people[-1] or good_left != slips
            store.votes.choose(shown.id, person, "left" if left else "right")


def learn_and_examine(base: Base, settings: Settings, examples: Sequence[Example], clean: Sequence[Example]) -> Learned:
    """Train on examples and examine the adapter, as people are served, on clean pairs."""
    started = time.monotonic()
    with ProgressBar() as bar:
        made = train_and_write(base, settings, examples, settings.adapters_dir, "planted", bar)
    minutes = (time.monotonic() - started) / 60
    sys.stderr.write(f"{made.examples} examples learned in {minutes:.1f} minutes, {made.counts['doubted']} doubted\n")
    served = load_served(base, settings)
    pairs, _ = encode_examples(served.tokenizer, clean, settings.night.max_tokens)
    cache = served_cache(settings.cache_dir, served, template_hash(served.tokenizer))
    bare = score_rows(served, pairs, None, cache)
    found = rank_preferences(pairs, score_rows(served, pairs, served.adapters.load(made.adapter.folder), cache), bare)
    return Learned(found.accuracy, found.low, found.high, made.examples, minutes)


def plant(
    settings: Settings, seed: int, voted: Sequence[Kind] = VOTED_KINDS, examined: Sequence[Kind] = TEST_KINDS
) -> Planted:
    """Plant the preference once, in the home that the settings name.

    Args:
        settings: a home without a store, and the cache.
        seed: of problems, replies, sides and slips.
        voted: what people vote on.
        examined: what nobody votes on.
    """
    rng = random.Random(f"{seed} planted")
    settings.home.mkdir(parents=True, exist_ok=True)
    store = open_store(settings.database_path)
    cast_votes(store, write_pairs(make_problems(voted, VOTES, seed), rng), rng)
    clean = write_pairs(make_problems(examined, EXAMINED, seed), rng)
    night, now = settings.night, datetime.now(UTC)
    heard = tonights_votes(store, night, now)
    everything = collect_votes(store, now=now, half_life_days=night.half_life_days)
    store.close()
    base = resolve_base(settings)
    learned = divide_votes(heard, "auto", night.holdout_share, night.seed).train
    plainly = divide_votes(everything, "dpo", night.holdout_share, night.seed).train
    plain = settings.model_copy(update={"night": night.model_copy(update=PLAIN_DPO)})
    return Planted(
        seed,
        len(clean),
        learn_and_examine(base, settings, learned, clean),
        learn_and_examine(base, plain, plainly, clean),
        heard.counts["by_side"],
    )


def table(found: Sequence[Planted]) -> list[str]:
    """Write the accuracies in Markdown."""
    lines = [
        "| seed | clean pairs | night, defaults | examples, minutes | plain DPO | examples, minutes | by side |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        cells = [
            f"{100 * of.accuracy:.0f} % ({100 * of.low:.0f} to {100 * of.high:.0f}) | {of.examples}, {of.minutes:.1f}"
            for of in (one.night, one.plain)
        ]
        lines.append(f"| {one.seed} | {one.n} | {' | '.join(cells)} | {one.by_side} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--home", default=None, help="whose cache is used; nothing is stored there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    mine = load_settings(args.home)
    found = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(home=Path(folder), cache=mine.cache_dir, model=mine.model, night=NightSettings())
            found.append(plant(settings, seed))
        sys.stderr.write(table(found)[-1] + "\n")
    sys.stdout.write(
        (json.dumps({"planted": [asdict(f) for f in found]}) if args.json else "\n".join(table(found))) + "\n"
    )


if __name__ == "__main__":
    main()
