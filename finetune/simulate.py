"""Simulated raters: they ask the project's own problems, vote on the replies by the rubric, and rewrite some.

Everything is stored the way the page stores it: conversations, replies with all that produced them,
comparisons with shuffled sides, thumbs, rewrites. The raters are people of kind `simulated`, and each
slips at a written rate. They keep away from stores in which real people talk.

Does not cover taste: the rubric is all they care about, and they never change their minds.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from assistant.build import build_engine
from assistant.engine import Engine, Message, Reply, Request, Sampling
from assistant.presets import SOCRATIC, Preset
from assistant.settings import Settings, load_settings
from feedback_store import Store, open_store
from feedback_store.records import CONVERSATION_KINDS, Choice, Origin
from finetune.errors import FinetuneError
from finetune.problems import Problem, make_problems
from finetune.problems_voted import VOTED_KINDS
from finetune.progress import Progress, ProgressBar, silent
from finetune.rubric import asks_question, is_socratic, score, states_answer

MAX_NEW_TOKENS = 96
"""Raters judge the beginning of a reply: by then it has asked, or it never will."""
TOGETHER = 32
"""Replies generated between two steps of the progress bar."""
COMPARED_SHARE = 0.3
"""Part of the problems on which a rater sees two replies side by side."""
REWRITTEN_SHARE = 0.8
"""Part of the replies that are not Socratic which a rater rewrites as a teacher would."""


@dataclass(frozen=True)
class Rater:
    """A simulated person. `slip_rate` is the share of thumbs and choices that come out the wrong way."""

    name: str
    slip_rate: float


RATERS = (
    Rater("simulated-ada", 0.0),
    Rater("simulated-ben", 0.02),
    Rater("simulated-cleo", 0.02),
    Rater("simulated-dov", 0.05),
    Rater("simulated-eda", 0.05),
    Rater("simulated-finn", 0.1),
)


class NotForRealPeople(FinetuneError):
    """Real people talk in this store; simulated votes would be taken for theirs."""


@dataclass
class Asked:
    """One problem put to the model by one rater, and the replies to it: one, or two to compare."""

    problem: Problem
    rater: Rater
    person_id: int
    message_id: str
    """The problem, as the rater's message."""
    compared: bool
    reply_ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def simulate_votes(
    engine: Engine,
    store: Store,
    settings: Settings,
    problems: Sequence[Problem],
    *,
    seed: int,
    progress: Progress = silent,
) -> dict[str, int]:
    """Let the simulated raters ask, vote and rewrite once for each problem.

    Args:
        engine: answers, with the adapter that is live.
        store: where it is kept; must hold no conversations of real people.
        settings: the sampling settings of the app; replies end after MAX_NEW_TOKENS at the latest.
        problems: one conversation each.
        seed: decides who asks what, what is compared and rewritten, and every slip.
        progress: told as replies are done.

    Returns:
        The store's counts afterwards.

    Raises:
        NotForRealPeople: nothing was written.
    """
    refuse_real_people(store)
    rng = random.Random(f"{seed} raters")
    ids = {rater.name: _person_id(store, rater) for rater in RATERS}
    progress("simulated votes", 0, len(problems))
    for start in range(0, len(problems), TOGETHER):
        part = problems[start : start + TOGETHER]
        asked = [_ask(store, problem, ids, rng) for problem in part]
        _answer(engine, store, settings, asked, rng)
        for one in asked:
            _judge(store, one, rng)
        progress("simulated votes", start + len(part), len(problems))
    return store.votes.counts()


def refuse_real_people(store: Store) -> None:
    """Make sure that no person but simulated ones has a conversation here.

    Raises:
        NotForRealPeople: somebody real has; their store is not touched.
    """
    for person in store.people.all():
        if person.kind == "simulated":
            continue
        if any(store.conversations.list(person.id, limit=1, kind=kind) for kind in CONVERSATION_KINDS):
            raise NotForRealPeople(
                f"The store {store.path} holds conversations of real people, and simulated votes do not belong "
                "beside theirs. Name another home with --home or NIGHTSCHOOL_HOME."
            )


def generate(
    engine: Engine, requests: Sequence[Request], progress: Progress = silent, phase: str = "replies"
) -> list[Reply]:
    """Generate replies in batches and wait for all of them."""
    replies: list[Reply] = []
    progress(phase, 0, len(requests))
    for start in range(0, len(requests), TOGETHER):
        part = engine.submit(requests[start : start + TOGETHER])
        for reply in part:
            reply.wait()
        replies += part
        progress(phase, len(replies), len(requests))
    return replies


def request_for(
    problem: Problem, settings: Settings, seed: int, adapter: str | None, preset: Preset = SOCRATIC
) -> Request:
    """Ask a problem under a preset, drawn as the app draws."""
    messages = [Message(role="system", content=preset.system), Message(role="user", content=problem.text)]
    drawn = settings.sampling
    limit = min(drawn.max_new_tokens, MAX_NEW_TOKENS)
    return Request(messages, Sampling(drawn.temperature, drawn.top_p, limit, seed), adapter)


def choose_side(left: int, right: int, good: int) -> Choice:
    """Choose between two replies by their rubric scores; `good` is the score from which a tie is no complaint."""
    if left == right:
        return "tie" if left >= good else "both-bad"
    return "left" if left > right else "right"


def _person_id(store: Store, rater: Rater) -> int:
    known = {person.name: person for person in store.people.all()}
    return (known.get(rater.name) or store.people.add(rater.name, kind="simulated")).id


def _ask(store: Store, problem: Problem, ids: Mapping[str, int], rng: random.Random) -> Asked:
    rater = rng.choice(RATERS)
    person_id, compared = ids[rater.name], rng.random() < COMPARED_SHARE
    conversation = store.conversations.start(person_id, kind="compare" if compared else "chat")
    message = store.conversations.add_user_message(conversation.id, person_id, problem.text)
    return Asked(problem, rater, person_id, message.id, compared)


def _answer(engine: Engine, store: Store, settings: Settings, asked: Sequence[Asked], rng: random.Random) -> None:
    """Store each reply as begun, generate them together, and store their ends."""
    adapter = store.registry.live().adapter_id
    owners = [one for one in asked for _ in range(2 if one.compared else 1)]
    requests = [request_for(one.problem, settings, rng.randrange(2**31), adapter) for one in owners]
    for one, request in zip(owners, requests, strict=True):
        origin = _origin(engine, request)
        one.reply_ids.append(store.conversations.begin_reply(one.message_id, one.person_id, origin).id)
    replies = generate(engine, requests)
    for one, reply in zip(owners, replies, strict=True):
        reply_id = one.reply_ids[len(one.texts)]
        store.conversations.finish_reply(reply_id, reply.text, "done", reply.finish, reply.new_tokens)
        one.texts.append(reply.text)


def _origin(engine: Engine, request: Request) -> Origin:
    drawn = request.sampling
    return Origin(
        adapter_id=request.adapter,
        base_id=engine.base_id,
        numeric_form=engine.numeric_form,
        preset=SOCRATIC.key,
        system=SOCRATIC.system,
        temperature=drawn.temperature,
        top_p=drawn.top_p,
        max_new_tokens=drawn.max_new_tokens,
        seed=drawn.seed,
    )


def _judge(store: Store, asked: Asked, rng: random.Random) -> None:
    """Vote on what one rater was shown; an empty reply cannot be voted on."""
    shown = [i for i, text in enumerate(asked.texts) if text.strip()]
    if len(shown) == 2 and asked.texts[0] != asked.texts[1]:
        _compare(store, asked, rng)
    elif shown:
        _rate(store, asked, shown[0], rng)
    if shown and rng.random() < REWRITTEN_SHARE:
        worst = min(shown, key=lambda i: score(asked.texts[i], asked.problem))
        if not is_socratic(asked.texts[worst], asked.problem):
            store.votes.rewrite(asked.reply_ids[worst], asked.person_id, rng.choice(asked.problem.questions))


def _compare(store: Store, asked: Asked, rng: random.Random) -> None:
    left, right = rng.sample((0, 1), 2)
    shown = store.votes.show_comparison(
        asked.person_id, asked.message_id, asked.reply_ids[left], asked.reply_ids[right]
    )
    scores = [score(text, asked.problem) for text in asked.texts]
    choice = choose_side(scores[left], scores[right], good=3)
    if choice in ("left", "right") and rng.random() < asked.rater.slip_rate:
        choice = "right" if choice == "left" else "left"
    store.votes.choose(shown.id, asked.person_id, choice)


def _rate(store: Store, asked: Asked, index: int, rng: random.Random) -> None:
    text = asked.texts[index]
    good = is_socratic(text, asked.problem)
    if rng.random() < asked.rater.slip_rate:
        good = not good
    if good:
        store.votes.rate(asked.reply_ids[index], asked.person_id, 1, ("clear",))
        return
    told = states_answer(text, asked.problem) or asks_question(text, asked.problem)
    reason = "told_the_answer" if told else "ignored_instruction"
    store.votes.rate(asked.reply_ids[index], asked.person_id, -1, (reason,))


def positive(text: str) -> int:
    """Read a whole number of at least 1 from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `python -m finetune simulate` takes beside --home and --json."""
    parser.add_argument("--problems", type=positive, default=200, metavar="N", help="problems that are voted on")
    parser.add_argument("--seed", type=int, default=0, help="decides the problems, the raters and their slips")


def run(args: argparse.Namespace) -> int:
    """Cast simulated votes in a home of their own and say what was stored."""
    if args.home is None and "NIGHTSCHOOL_HOME" not in os.environ:
        raise NotForRealPeople("Simulated votes need a home of their own. Name it with --home or NIGHTSCHOOL_HOME.")
    settings = load_settings(args.home)
    store = open_store(settings.database_path)
    refuse_real_people(store)
    engine = build_engine(settings)
    try:
        with ProgressBar() as progress:
            problems = make_problems(VOTED_KINDS, args.problems, args.seed)
            counts = simulate_votes(engine, store, settings, problems, seed=args.seed, progress=progress)
    finally:
        engine.close()
        store.close()
    if args.json:
        sys.stdout.write(json.dumps({"simulated": True, "home": str(settings.home), **counts}) + "\n")
    else:
        sys.stdout.write(
            f"Simulated people voted in {settings.home}: {counts['thumbs_up']} thumbs up, "
            f"{counts['thumbs_down']} down, "
            f"{counts['comparisons']} comparisons, {counts['rewrites']} rewrites; "
            f"{counts['pairs']} pairs to learn from.\n"
        )
    return 0
