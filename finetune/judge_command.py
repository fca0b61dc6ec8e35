"""`python -m finetune judge`: the constitution, the engine, and what is said afterwards."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from assistant.build import build_engine
from assistant.remote import is_server
from assistant.settings import ServerSettings, Settings, load_settings
from feedback_store import Store, open_store
from feedback_store.agreement import Agreement, LeftBias, left_bias_of
from feedback_store.ai import AiJudge
from finetune.errors import BadData, NothingToLearn
from finetune.judge import TOGETHER, Judged, Revised, judge_pairs, revise_replies
from finetune.progress import ProgressBar

CONSTITUTION = Path(__file__).with_name("constitution.txt")


def run(args: argparse.Namespace) -> int:
    """Let a model judge what is in the store, and say how it judged."""
    settings = choose_engine(load_settings(args.home), args.engine)
    constitution = read_constitution(args.constitution or CONSTITUTION)
    store = open_store(settings.database_path, create=False)
    try:
        if not store.ai.pairs_to_judge() and not (args.revise and store.ai.replies_to_revise()):
            raise NothingToLearn(
                "There are no two finished replies to one message that may be taught from. Compare or retry some first."
            )
        engine = build_engine(settings)
        try:
            judge = store.ai.judge(engine.base_id, constitution)
            longest = settings.sampling.max_new_tokens
            with ProgressBar() as bar:
                judged = judge_pairs(
                    engine, store, judge, constitution, limit=args.limit, samples=args.samples, progress=bar
                )
                revised = (
                    revise_replies(
                        engine, store, judge, constitution, limit=args.limit, max_new_tokens=longest, progress=bar
                    )
                    if args.revise
                    else None
                )
        finally:
            engine.close()
        say(args, store, judge, judged, revised)
    finally:
        store.close()
    return 0


def choose_engine(settings: Settings, engine: str | None) -> Settings:
    """Take another engine than the settings' own; one server's key and model name are not told to another server."""
    changed: dict[str, Any] = {"queue_limit": max(settings.queue_limit, TOGETHER)}  # nobody else waits for this engine
    if engine is not None and engine != settings.engine:
        changed["engine"] = engine
        if is_server(settings.engine):
            changed["server"] = ServerSettings()
    return settings.model_copy(update=changed)


def read_constitution(path: Path) -> str:
    """Read the text that a judge judges by.

    Raises:
        BadData: it cannot be read, or says nothing to judge by.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadData(f"The constitution {path} cannot be read ({error.strerror}). Give a text file.") from error
    except UnicodeDecodeError as error:
        raise BadData(f"The constitution {path} is not UTF-8 text. Give a text file.") from error
    if not text:
        raise BadData(f"The constitution {path} is empty. Write in it what a good reply is.")
    return text


def say(args: argparse.Namespace, store: Store, judge: AiJudge, judged: Judged, revised: Revised | None) -> None:
    """Print what came of it: as JSON, or in words."""
    agreement = store.ai.agreement(judge)
    side = left_bias_of(judged.chose_a, judged.answers - judged.chose_a)
    fields = {
        "judge": judge.name,
        **vars(judged),
        "revision": None if revised is None else vars(revised),
        "shown_first": {"chosen": side.left, "answers": side.chosen, "share": side.share}
        | {"low": side.low, "high": side.high},
        "agreement": {"n": agreement.pairs, "percent": _percent(agreement.percent), "kappa": agreement.kappa}
        | {"decided_n": agreement.decided_pairs, "decided_percent": _percent(agreement.decided_percent)},
    }
    sentences = [
        judge.name,
        f"{judged.pairs} pairs judged: {judged.choices} choices, {judged.ties} ties, because the orders disagreed, and "
        f"{judged.unreadable} without a readable answer. {judged.too_long} were too long for the judge.",
        *([_side_words(side)] if judged.pairs else []),
        _agreement_words(agreement),
    ]
    if revised is not None:
        sentences.append(
            f"{revised.replies} replies revised: {revised.rewritten} written anew, {revised.fine} found fine, "
            f"{revised.unusable} without a usable text. {revised.too_long} were too long for the judge."
        )
    sys.stdout.write((json.dumps(fields, ensure_ascii=False) if args.json else "\n".join(sentences)) + "\n")


def _side_words(side: LeftBias) -> str:
    if side.share is None or side.low is None or side.high is None:
        return "There was no readable answer, so nothing says whether the judge favours a side."
    return (
        f"What was shown first was chosen in {100 * side.share:.1f} % of {side.chosen} answers "
        f"(95 % {100 * side.low:.1f} to {100 * side.high:.1f}; 50 favours no side)."
    )


def _agreement_words(found: Agreement) -> str:
    if found.percent is None:
        return "No person has judged what this judge has, so nothing says how far it agrees with people."
    kappa = "" if found.kappa is None else f", kappa {found.kappa:.2f}"
    decided = f"; where both choose, in {_percent(found.decided_percent)} % of {found.decided_pairs}"
    return (
        f"It says what people say in {_percent(found.percent)} % of {found.pairs} judgements{kappa}"
        f"{decided if found.decided_pairs else ''}."
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)
