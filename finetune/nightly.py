"""The night: votes in, an adapter live or a reason why not.

    collect → freeze → train → examine → decide → promote → report

Killed at any point, what was live stays live: the adapter's folder counts once it is whole, and the live
pointer moves in one transaction of the store. A killed night is marked as crashed by the next one, whose training
goes on where that of the killed one was, if it is the same.
"""

import gc
import importlib.metadata
import json
import logging
import os
import platform
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from assistant.adapters import AdapterInfo, verify_adapter
from assistant.errors import AdapterError, AdapterNotServed, AssistantError
from assistant.loading import Base, load_served, resolve_base
from assistant.server_adapters import serve_adapter
from assistant.settings import Settings
from feedback_store import Store
from feedback_store.errors import StaleGeneration, StoreError, TaintedAdapter
from feedback_store.records import Live, Outcome, TrainItem
from finetune.ai_votes import add_ai_votes
from finetune.collect import NightData, Votes, divide_votes, write_manifest
from finetune.errors import FinetuneError, NotYet
from finetune.evaluate import served_form
from finetune.examples import Method, count_one_sided, settings_for
from finetune.gate import Decision, Limits, decide
from finetune.notes import ONE_SIDED, TAKES, explain, explain_others
from finetune.ppo_night import StagedRun, remove_stages, train_in_stages
from finetune.processes import ALONE, World
from finetune.progress import Progress, ProgressLog, silent
from finetune.raters import tonights_votes
from finetune.report import plain, write_report
from finetune.workshop import Findings, TrainingRun, open_room, peak_gb, train_and_write

log = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors", "sqlite-utils", "pysqlite3")
DUE_AFTER = timedelta(hours=24)
EXAMINED_IN = "examined_in"
"""Where the metrics of a run say by adapter in which form it was examined."""
ALL_RUNS = 100_000

NightOutcome = Outcome | Literal["already-running"]


@dataclass(frozen=True)
class NightResult:
    """How a night ended; `reasons` are sentences."""

    outcome: NightOutcome
    run: str | None
    adapter: str | None
    reasons: tuple[str, ...]


@dataclass
class _Night:
    """What a night has at hand; the report is what it knows so far."""

    settings: Settings
    store: Store
    method: Method
    reward: Path | None
    run_id: str
    folder: Path
    progress: Progress
    world: World
    report: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    adapter_id: str | None = None
    data_hash: str | None = None
    examined_in: dict[str, str] = field(default_factory=dict)
    """By adapter the form in which tonight examined it."""
    others: Sequence[str] = ()
    """What is to be said of votes that the method does not learn from."""


def run_nightly(
    settings: Settings,
    store: Store,
    *,
    method: Method = "auto",
    reward: Path | None = None,
    progress: Progress = silent,
    world: World = ALONE,
) -> NightResult:
    """Run one night.

    Args:
        settings: of this home.
        store: its open store.
        method: what to learn from.
        reward: of PPO: the folder of a reward model to follow, instead of tonight's own.
        progress: told after each step, besides the run folder's progress.jsonl.
        world: who computes with this process.

    Returns:
        The outcome; only `failed` is a failure. A second night beside a running one is `already-running`.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(settings.home / "night.lock", timeout=0):
            store.registry.mark_crashed_runs()
            remove_stages(settings.runs_dir)
            store.registry.retire_tainted()
            return _run_locked(settings, store, method, reward, progress, world)
    except Timeout:
        return NightResult("already-running", None, None, ("Another night is running in this home already.",))


def hours_until_due(store: Store, now: datetime) -> float:
    """Count the hours until the next night is due: 24 h after the last one that came to its end; 0 when it is due."""
    ended = [
        run.finished_at for run in store.registry.runs() if run.finished_at and run.outcome not in (None, "failed")
    ]
    if not ended:
        return 0.0
    left = datetime.fromisoformat(max(ended)) + DUE_AFTER - now
    return max(0.0, left.total_seconds() / 3600)


def _run_locked(
    settings: Settings, store: Store, method: Method, reward: Path | None, progress: Progress, world: World
) -> NightResult:
    settings = settings.model_copy(update={"night": settings_for(settings.night, method)})
    now = datetime.now(UTC)
    run_id = f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    folder = settings.runs_dir / run_id
    folder.mkdir(parents=True)
    store.registry.start_run(run_id)
    steps = ProgressLog(folder / "progress.jsonl", progress)
    night = _Night(settings, store, method, reward, run_id, folder, steps, world)
    try:
        return _night(night, now)
    except NotYet as reason:
        return _finish(night, "skipped", str(reason))
    except (FinetuneError, AssistantError, StoreError) as error:
        return _finish(night, "failed", str(error))
    except Exception as error:  # the edge of the night: whatever happened, the run's row says that it failed
        log.exception("the night failed")
        return _finish(night, "failed", f"The night met an unexpected error ({type(error).__name__}: {error}).")
    finally:
        steps.close()


def _night(night: _Night, now: datetime) -> NightResult:
    """The flat list of steps."""
    settings = night.settings
    votes = tonights_votes(night.store, settings.night, now)
    night.others = explain_others(votes.examples, night.method)
    data = divide_votes(votes, night.method, settings.night.holdout_share, settings.night.seed)
    data = add_ai_votes(data, votes, night.store, settings.night, now, night.method)
    _freeze(night, data, None)
    if reason := _too_little(votes, data, night.method, settings.night.min_votes):
        return _finish(night, "skipped", reason)
    base = resolve_base(settings)
    _freeze(night, data, base)
    items = [TrainItem(int(example.person), example.ids) for example in (*data.train, *data.heldout)]
    night.store.registry.record_training(night.run_id, items)
    live = night.store.registry.live()
    adapter = _train(night, base, data)
    if adapter.id == live.adapter_id:
        same = "Nothing has changed since the adapter that is live: tonight's is the same."
        return _finish(night, "skipped", same, *_examine_live_again(night, base, data, live))
    if night.store.registry.was_live(adapter.id):  # a person's rollback must outlast the night
        return _finish(
            night,
            "skipped",
            f"Nothing has changed since {adapter.id} was taken out of service: tonight's is the same. "
            "Promote it by hand, or wait for new votes.",
        )
    night.progress("examine", 0, 1)
    try:
        verify_adapter(adapter.folder, base.id)  # from the disk, as the app will read it
    except AdapterError as error:
        return _finish(night, "refused", str(error))
    candidate, examined, limits = _examine(night, base, data, adapter.folder, live.adapter_id)
    decision = decide(candidate.measures, examined.measures, limits)
    _note_decision(night, decision, candidate, examined, live.adapter_id)
    if not decision.passed:
        night.store.registry.register_adapter(adapter.id, base.id, night.run_id, _metrics(candidate), "refused")
        return _finish(night, "refused", *decision.reasons, *_examine_live_again(night, base, data, live))
    return _promote(night, base, adapter, candidate, live)


def _too_little(votes: Votes, data: NightData, method: Method, min_votes: int) -> str:
    """Say why the night is skipped; empty when it is not."""
    usable = votes.usable(method)
    if usable < min_votes:
        missing = min_votes - usable
        why = f" {ONE_SIDED}" if count_one_sided(votes.examples, method) else ""
        return f"A night needs {min_votes} usable {TAKES[method]} and has {usable}: {missing} are missing.{why}"
    if not any(example.compares for example in votes.examples):
        return (
            "There is nothing to examine a night with: thumbs and rewritten answers are not examined. "
            "Compare or rank some replies, too."
        )
    if data.heldout and not data.train:
        return f"Nothing is left to learn from beside what is held out. Give more {TAKES[method]}."
    if not data.heldout or not data.train:
        return (
            "The votes cannot be divided into a part to learn from and a part to examine with, because they "
            "hang together in one conversation or prompt. Vote in other conversations, too."
        )
    return ""


def _freeze(night: _Night, data: NightData, base: Base | None) -> None:
    """Write down what the night starts from, before it trains."""
    night.data_hash = data.data_hash
    night.report["counts"] = dict(data.counts)
    write_manifest(night.folder / "manifest.jsonl", data)
    run = {
        "run": night.run_id,
        "method": night.method,
        "settings": night.settings.model_dump(mode="json", exclude={"home"}),
        "seed": night.settings.night.seed,
        "base_id": base.id if base else None,
        "base_name": base.name if base else None,
        "data_hash": data.data_hash,
        "counts": data.counts,
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "pid": os.getpid(),
    }
    (night.folder / "run.json").write_text(json.dumps(run, indent=2), encoding="utf-8")


def _train(night: _Night, base: Base, data: NightData) -> AdapterInfo:
    """Train tonight's adapter, and note how it went."""
    settings = night.settings
    if night.method == "ppo":
        staged = train_in_stages(base, settings, data.train, data.heldout, night.reward, night.run_id, night.progress)
        _note_stages(night, staged)
        return staged.policy.adapter
    made = train_and_write(base, settings, data.train, settings.adapters_dir, night.run_id, night.progress, night.world)
    _note_training(night, made)
    return made.adapter


def _note_stages(night: _Night, staged: StagedRun) -> None:
    trained = staged.policy.trained
    counts = Counter(night.report["counts"])
    counts.update(staged.left_out)
    night.report["counts"] = dict(counts)
    night.history = trained.history
    night.report |= staged.report()
    night.report["training"] = {
        **staged.counts,
        "iterations": len(trained.history) - 1,
        "chosen_iteration": trained.chosen,
        "stopped_at_the_kl_limit": trained.stopped,
        "seconds_of_ppo": round(trained.seconds, 1),
        "peak_gb": round(peak_gb(), 2),
    }
    night.report["candidate"] = staged.policy.adapter.id


def _note_training(night: _Night, made: TrainingRun) -> None:
    night.history = made.trained.history
    one_sided = night.report["counts"]["one_sided_thumbs"] + made.counts["one_sided_thumbs"]
    night.report["counts"] |= made.counts | {"one_sided_thumbs": one_sided}
    night.report["training"] = {
        "steps": len(made.trained.history),
        "examples": made.examples,
        "pairs": made.pairs,
        "resumed_at_step": made.trained.resumed_at_step,
        "seconds": round(made.trained.seconds, 1),
        "peak_gb": round(peak_gb(), 2),
    }
    night.report["candidate"] = made.adapter.id


def _examine(
    night: _Night, base: Base, data: NightData, folder: Path, live_id: str | None
) -> tuple[Findings, Findings, Limits]:
    """Measure an adapter and what it is compared with, None for the bare base, on the model as it is served."""
    with open_room(base, night.settings, data.heldout, night.progress, night.world) as room:
        examined_id = room.load(folder)
        candidate = room.examine(examined_id)
        night.examined_in[examined_id] = served_form(room.served)
        against: str | None = None
        if live_id is not None:
            try:
                against = room.load(night.settings.adapters_dir / live_id)
            except AdapterError as error:
                night.report["live_unusable"] = f"Compared with the bare base instead of what is live: {error}"
        examined = room.examine(against)
    limits = Limits(
        accuracy_margin=night.settings.night.gate_accuracy_margin,
        perplexity_rise=night.settings.night.gate_perplexity_rise,
        base_perplexity=candidate.base_perplexity,
        clusters=tuple(pair.cluster for pair in room.pairs),
    )
    return candidate, examined, limits


def _examine_live_again(night: _Night, base: Base, data: NightData, live: Live) -> list[str]:
    """Hold what is live against the bare base where it is served in another form than it was examined in.

    A form that rounds otherwise may spoil an adapter that passed in the old one; one that does not pass any more is
    taken out of service.

    Returns:
        What came of it, in a sentence; nothing where the form is the same.
    """
    registry, adapter_id = night.store.registry, live.adapter_id
    if adapter_id is None:
        return []
    form = served_form(load_served(base, night.settings))
    gc.collect()  # the room loads it again
    if any(run.metrics.get(EXAMINED_IN, {}).get(adapter_id) == form for run in registry.runs(limit=ALL_RUNS)):
        return []
    try:
        found, bare, limits = _examine(night, base, data, night.settings.adapters_dir / adapter_id, None)
    except AdapterError as error:
        return [f"{adapter_id}, which is live, could not be examined again. {error}"]
    decision = decide(found.measures, bare.measures, limits)
    again = (
        f"{adapter_id}, which is live, was examined again, because it is served in another numeric form now ({form})"
    )
    if decision.passed:
        return [f"{again}, and passed."]
    try:
        registry.promote(None, live.generation)
    except StaleGeneration:
        return [f"{again}, and failed: {' '.join(decision.reasons)} Something else is live by now."]
    return [f"{again}, and failed: {' '.join(decision.reasons)} The bare base answers from now on."]


def _note_decision(night: _Night, decision: Decision, candidate: Findings, live: Findings, live_id: str | None) -> None:
    night.report["live"] = None if "live_unusable" in night.report else live_id
    night.report["gate"] = decision.table()
    night.report["examination"] = {"candidate": _metrics(candidate), "live": _metrics(live)}
    night.report["flawed_replies"] = [candidate.replies.replies[i] for i in candidate.replies.flawed]


def _promote(night: _Night, base: Base, adapter: AdapterInfo, candidate: Findings, live: Live) -> NightResult:
    """Register the adapter and move the pointer, unless somebody moved it since the night began."""
    registry = night.store.registry
    registry.register_adapter(adapter.id, base.id, night.run_id, _metrics(candidate), "ready")
    registry.set_adapter_state(adapter.id, "ready")  # the same adapter may have been refused in an earlier night
    night.adapter_id = adapter.id
    night.progress("promote", 0, 1)
    try:
        serve_adapter(night.settings, adapter.id)
        registry.promote(adapter.id, live.generation)
    except AdapterNotServed as error:
        return _finish(night, "refused", f"{adapter.id} passed every check, but is not live. {error}")
    except StaleGeneration:
        return _finish(
            night,
            "refused",
            f"What is live was changed while the night was running. Look at {adapter.id} and promote it by hand.",
        )
    except TaintedAdapter as error:  # somebody was erased, or withdrew, while the night was running
        return _finish(night, "refused", str(error))
    night.progress("promote", 1, 1)
    return _finish(night, "promoted", f"{adapter.id} passed every check and is live.")


def _finish(night: _Night, outcome: Outcome, *reasons: str) -> NightResult:
    """Write the report, then the run's row."""
    adapter = night.adapter_id if outcome == "promoted" else night.report.get("candidate")
    notes = [*night.others, *explain(night.report.get("counts", {}))]
    report = {"run": night.run_id, "outcome": outcome, "reasons": list(reasons), "adapter": adapter, "notes": notes}
    report |= night.report
    write_report(night.folder, report, night.history)
    registered = {a.id for a in night.store.registry.adapters()}
    night.store.registry.finish_run(
        night.run_id,
        outcome,
        adapter_id=adapter if adapter in registered else None,
        data_hash=night.data_hash,
        reasons=reasons,
        metrics=night.report.get("examination", {}).get("candidate", {}) | {EXAMINED_IN: night.examined_in},
    )
    return NightResult(outcome, night.run_id, adapter, tuple(reasons))


def _metrics(findings: Findings) -> dict[str, Any]:
    metrics: dict[str, Any] = plain(findings.numbers())
    return metrics
