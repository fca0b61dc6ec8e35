"""The operate page: votes so far, nights, adapters, and the pointer to the live one.

Handlers above, layout and wiring below.
"""

import hashlib
import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import gradio as gr

from assistant.adapters import verify_adapter
from assistant.engine import SERVER
from assistant.errors import AdapterError
from assistant.server_adapters import serve_adapter
from assistant.settings import Settings
from feedback_store import Store
from feedback_store.errors import StoreError
from feedback_store.overview import Overview
from feedback_store.records import Adapter, Live, Run
from ui.door import visitor
from ui.events import SHORT
from ui.feedback import notice_update
from ui.nights import Nights, Progress
from ui.texts import Texts

BASE = "base"
DIGESTS = 6
"""Place of the digests among the outputs, behind the parts that they are of."""
COUNTED = ("replies", "thumbs_up", "thumbs_down", "comparisons", "rankings", "rewrites", "pairs")


@dataclass(frozen=True)
class Snapshot:
    """What one filling of the page tells of, so that its parts say the same."""

    working: bool
    """Whether a night is under way."""
    runs: list[Run]
    live: Live
    adapters: list[Adapter]
    votes: Overview


class OperateDesk:
    """What the operator can see and do, without the page."""

    def __init__(self, store: Store, nights: Nights, settings: Settings, base_id: str, texts: Texts) -> None:
        self._store = store
        self._nights = nights
        self._settings = settings
        self._base_id = base_id
        self._needed = settings.night.min_votes
        self._texts = texts

    def promote(self, choice: str | None, generation: str) -> str:
        """Move the pointer to an adapter or the base; refused when it moved since the page was filled."""
        if not choice or not generation.isdigit():
            return self._texts.reload_page
        adapter = None if choice == BASE else choice
        try:
            self._check(adapter)
            live = self._store.registry.promote(adapter, int(generation))
        except AdapterError as error:
            return self._texts.adapter_error(error)
        except StoreError as error:
            return self._texts.error(error)
        moved = live.generation > int(generation)
        says = self._texts.promoted if moved else self._texts.already_live
        return says.format(adapter=self._texts.adapter_name(adapter))

    def roll_back(self, generation: str) -> str:
        """Move the pointer back to what answered before; refused when it moved since the page was filled."""
        if not generation.isdigit():
            return self._texts.reload_page
        try:
            before = self._store.registry.live()
            if before.generation == int(generation):  # else its files are not what this is about
                self._check(before.previous_id)
            live = self._store.registry.rollback(int(generation))
        except AdapterError as error:
            return self._texts.adapter_error(error)
        except StoreError as error:
            return self._texts.error(error)
        return self._texts.rolled_back.format(adapter=self._texts.adapter_name(live.adapter_id))

    def retrain(self) -> str:
        """Start the nightly command; says why not, or nothing, as the night itself tells how far it is."""
        if self._running_run() is not None or not self._nights.start():
            return self._texts.retrain_running
        return ""

    def working(self) -> bool:
        """Whether a night is under way."""
        return self._nights.running or self._running_run() is not None

    def look(self) -> Snapshot:
        """Read what the page shows, the nights first: when one is seen as ended, what it put live is seen too."""
        working, registry = self.working(), self._store.registry
        runs = registry.runs(limit=10)
        working = working or any(run.state == "running" for run in runs)
        return Snapshot(working, runs, registry.live(), registry.adapters(), self._store.votes.overview())

    def votes_html(self, seen: Snapshot | None = None) -> str:
        """Counts, how far it is to a night, and how people vote."""
        texts, votes = self._texts, (seen or self.look()).votes
        counts = votes.counts
        usable = counts["pairs"]
        missing = max(0, self._needed - usable)
        share = min(100, round(100 * usable / self._needed))
        says = texts.votes_missing.format(missing=missing) if missing else texts.votes_enough
        tiles = "".join(f"<div><b>{counts[key]:,}</b><span>{texts.counts[key]}</span></div>" for key in COUNTED)
        goal = (texts.usable_votes if missing else texts.usable_enough).format(usable=usable, needed=self._needed)
        return (
            f"<h3>{texts.votes_title}</h3><div class='tiles'>{tiles}</div>"
            f"{_bar(share, goal)}<p class='muted'>{goal}. {says}</p>{_how_people_vote(votes, texts)}"
        )

    def live_html(self, seen: Snapshot | None = None) -> str:
        """What answers now, and what did before."""
        texts, live = self._texts, (seen or self.look()).live
        before = texts.nothing_before
        if live.generation:
            before = texts.live_before.format(adapter=texts.adapter_name(live.previous_id))
        name = texts.escape(texts.adapter_name(live.adapter_id))
        return f"<h3>{texts.live_title}</h3><p class='live'>{name}</p><p class='muted'>{texts.escape(before)}</p>"

    def night_html(self, seen: Snapshot | None = None) -> str:
        """The progress of the night under way, or how the last one ended."""
        runs = (seen or self.look()).runs
        running = next((run for run in runs if run.state == "running"), None)
        if running is not None:
            return self._progress_html(self._nights.progress(running.id))
        texts, newest = self._texts, next(iter(runs), None)
        # Before the process: a night has ended once its row says so, though its process takes seconds to go.
        if newest is not None and newest.started_at >= self._nights.started_at:
            return f"<p class='muted'>{texts.escape(texts.night_ends.get(outcome_of(newest), texts.night_step))}</p>"
        if self._nights.running:
            return self._progress_html(None)
        if self._nights.started_at:
            last = as_the_night_said(self._nights.last_words(), texts)
            return f"<p class='muted'>{texts.escape(texts.not_begun).format(last=last)}</p>"
        return ""

    def runs_html(self, seen: Snapshot | None = None) -> str:
        """The last nights with their gate tables and plots."""
        texts, seen = self._texts, seen or self.look()
        body = "".join(self._run_html(run, unfolded=place == 0) for place, run in enumerate(seen.runs))
        none = "" if seen.working else f"<p class='muted'>{texts.no_runs}</p>"
        return f"<h3>{texts.runs_title}</h3>" + (body or none)

    def adapters(self, seen: Snapshot | None = None) -> tuple[list[tuple[str, str]], str]:
        """Adapters that may answer, the base among them, with their ids; and which one does."""
        seen = seen or self.look()
        choices = [
            (f"{adapter.id} · {adapter.created_at[:10]}", adapter.id)
            for adapter in seen.adapters
            if adapter.state == "ready"
        ]
        return [*choices, (self._texts.base_model, BASE)], seen.live.adapter_id or BASE

    def generation(self, seen: Snapshot | None = None) -> str:
        """The pointer's generation, to be sent back with a promotion or a rollback."""
        return str((seen or self.look()).live.generation)

    def _check(self, adapter: str | None) -> None:
        if adapter is not None:
            registered = self._store.registry.get_adapter(adapter)  # first: a name that nobody registered is no path
            base_id = registered.base_id if self._base_id.startswith(SERVER) else self._base_id
            verify_adapter(self._settings.adapters_dir / adapter, base_id)
            serve_adapter(self._settings, adapter)

    def _running_run(self) -> Run | None:
        """The night under way; one that was killed is marked as crashed here, so that it stands in nobody's way."""
        run = next((run for run in self._store.registry.runs(limit=5) if run.state == "running"), None)
        # While a night that was started here begins, its lock is left alone: a look at it could turn that night away.
        if run is None or self._nights.running or not self._nights.none_holds_the_lock():
            return run
        self._store.registry.mark_crashed_runs()
        return None

    def _progress_html(self, progress: Progress | None) -> str:
        if progress is None:
            return f"<p class='muted'>{self._texts.retrain_started}</p>"
        words = self._texts.night_steps.get(progress.phase.partition(" ")[0], self._texts.night_step)
        says = self._texts.progress.format(words=words, step=progress.step, total=progress.total)
        if progress.eta_s is not None and math.isfinite(progress.eta_s):
            says += ", " + self._texts.time_left.format(minutes=max(1, math.ceil(progress.eta_s / 60)))
        share = round(100 * progress.step / progress.total) if progress.total > 0 else 0
        return f"{_bar(min(100, share), says)}<p class='muted'>{self._texts.escape(says)}</p>"

    def _run_html(self, run: Run, unfolded: bool) -> str:
        texts, report = self._texts, self._nights.report(run.id)
        outcome = outcome_of(run)
        word = texts.escape(texts.run_outcomes.get(outcome, outcome))
        reasons = "".join(f"<li>{reason}</li>" for reason in run_reasons(run, report, self._needed, texts))
        images = "".join(
            f"<a href='/plots/{run.id}/{name}' target='_blank' title='{texts.escape(texts.enlarge)}'>"
            f"<img loading='lazy' src='/plots/{run.id}/{name}' alt='{texts.escape(texts.plot)}'></a>"
            for name in self._nights.plots(run.id)
        )
        when = texts.escape(run.started_at[:16].replace("T", " "))
        return (
            f"<details class='run'{' open' if unfolded else ''}>"
            f"<summary><span>{when} UTC</span><span class='badge {texts.escape(outcome)}'>{word}</span></summary>"
            + (f"<ul>{reasons}</ul>" if reasons else "")
            + gate_table(report.get("gate"), texts)
            + (f"<div class='plots'>{images}</div>" if images else "")
            + "</details>"
        )


def _how_people_vote(votes: Overview, texts: Texts) -> str:
    """Say what is known of agreement, sides, pace and consent; nothing where nothing is."""
    agreement, left, said = votes.agreement, votes.left, []
    if agreement.percent is not None:
        kappa = "–" if agreement.kappa is None else f"{agreement.kappa:.2f}"
        said.append(texts.people_agree.format(percent=100 * agreement.percent, items=agreement.items, kappa=kappa))
    if left.share is not None and left.low is not None and left.high is not None:
        low, high = 100 * left.low, 100 * left.high
        said.append(texts.left_chosen.format(percent=100 * left.share, low=low, high=high))
    if votes.votes_a_minute is not None:
        said.append(texts.votes_pace.format(pace=votes.votes_a_minute))
    if votes.kept_from_teaching:
        said.append(texts.not_teaching.format(people=votes.kept_from_teaching))
    return f"<p class='muted'>{texts.escape(' '.join(said))}</p>" if said else ""


def outcome_of(run: Run) -> str:
    """How a run ended, or its state where it did not."""
    return run.outcome or run.state


def as_the_night_said(sentence: str, texts: Texts) -> str:
    """Quote the night, which speaks English, as HTML: marked so where the page speaks another language."""
    said = texts.escape(sentence)
    return f"<span lang='en'>{said}</span> {texts.escape(texts.in_english)}" if texts.in_english else said


def run_reasons(run: Run, report: dict[str, Any], needed: int, texts: Texts) -> list[str]:
    """Say in the page's language, as HTML, why a run ended as it did; what has no words there is quoted."""
    gate, counts = report.get("gate"), report.get("counts")
    rows = [row for row in gate if isinstance(row, dict)] if isinstance(gate, list) else []
    said = {str(row.get("note")): _gate_words(row, texts)[1] for row in rows}
    usable = counts.get("usable") if isinstance(counts, dict) else None
    words = texts.run_reasons
    if words and run.outcome == "promoted" and run.adapter_id:
        return [texts.escape(words["promoted"].format(adapter=texts.adapter_name(run.adapter_id)))]
    if words and run.outcome == "skipped" and isinstance(usable, int) and usable < needed:
        return [texts.escape(words["too_few"].format(needed=needed, usable=usable))]
    return [said.get(reason) or as_the_night_said(reason, texts) for reason in run.reasons]


def gate_table(rows: Any, texts: Texts) -> str:
    """The gate's checks as a table; nothing when the report has none."""
    if not isinstance(rows, list) or not rows:
        return ""
    head = "".join(f"<th scope='col'>{texts.escape(column)}</th>" for column in texts.gate_columns)
    body = "".join(_gate_row(row, texts) for row in rows if isinstance(row, dict))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='scroll'>{table}</div><p class='muted'>{texts.escape(texts.gate_note)}</p>"


def _gate_row(row: dict[str, Any], texts: Texts) -> str:
    passed = bool(row.get("passed"))
    result = f"<td class='{'good' if passed else 'bad'}'>{texts.passed if passed else texts.not_passed}</td>"
    name, note = _gate_words(row, texts)
    numbers = "".join(f"<td>{texts.escape(_number(row.get(key)))}</td>" for key in ("live", "candidate", "limit"))
    return f"<tr><th scope='row'>{name}<p class='muted'>{note}</p></th>{numbers}{result}</tr>"


def _gate_words(row: dict[str, Any], texts: Texts) -> tuple[str, str]:
    """Name and sentence of a check, as HTML: this language's, filled with the row's numbers, or the report's own."""
    name, note = str(row.get("check", "")), str(row.get("note", ""))
    words = texts.gate_checks.get(name)
    if words is None:
        return as_the_night_said(name, texts), as_the_night_said(note, texts)
    says = words.passed if row.get("passed") else words.not_passed
    numbers = {key: _number(row.get(key)) for key in ("candidate", "limit")}
    return texts.escape(words.name), texts.escape(says.format(**numbers))


def _number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _bar(percent: int, label: str) -> str:
    return (
        f"<div class='bar' role='progressbar' aria-label='{Texts.escape(label)}' aria-valuemin='0' "
        f"aria-valuemax='100' aria-valuenow='{percent}'><i style='width:{percent}%'></i></div>"
    )


@dataclass(frozen=True)
class OperateParts:
    """The operate page's components."""

    votes: gr.HTML
    live: gr.HTML
    night: gr.HTML
    runs: gr.HTML
    choice: gr.Dropdown
    generation: gr.Textbox
    seen: gr.Textbox
    """Digests of what the outputs before it show."""
    notice: gr.HTML
    retrain: gr.Button
    refresh: gr.Button
    promote: gr.Button
    roll_back: gr.Button
    timer: gr.Timer

    @property
    def outputs(self) -> list[Any]:
        """Components that a refresh fills."""
        return [
            self.votes, self.live, self.night, self.runs, self.choice, self.generation, self.seen, self.notice,
            self.timer,
        ]  # fmt: skip


def build_operate(texts: Texts) -> OperateParts:
    """Lay out the operate page."""
    notice = gr.HTML(elem_id="operate-notice", elem_classes="notice", visible=False)
    generation = gr.Textbox(visible=False, elem_id="generation")
    seen = gr.Textbox(visible=False, elem_id="operate-seen")
    with gr.Row(equal_height=True):
        with gr.Column(elem_classes="card", scale=3, min_width=300):
            votes = gr.HTML(elem_id="votes")
        with gr.Column(elem_classes="card", scale=2, min_width=280):
            live = gr.HTML(elem_id="live")
            choice = gr.Dropdown([], label=texts.adapter_choice, elem_id="adapter-choice", container=False)
            with gr.Row(elem_classes="tight"):
                promote = gr.Button(texts.promote, elem_id="promote", size="sm", min_width=80)
                roll_back = gr.Button(texts.rollback, elem_id="roll-back", size="sm", min_width=80)
    with gr.Column(elem_classes="card"):
        with gr.Row(elem_classes="tight night"):
            gr.HTML(f"<h3>{texts.night_title}</h3>")
            retrain = gr.Button(texts.retrain, variant="primary", elem_id="retrain", size="sm", min_width=110, scale=0)
            refresh = gr.Button(texts.refresh, elem_id="refresh", size="sm", min_width=80, scale=0)
        night = gr.HTML(elem_id="night")
        runs = gr.HTML(elem_id="runs")
    timer = gr.Timer(2.0, active=False)
    return OperateParts(
        votes, live, night, runs, choice, generation, seen, notice, retrain, refresh, promote, roll_back, timer
    )


class OperatePage:
    """Turns the desk's answers into component updates, for operators; whoever is none changes and learns nothing."""

    def __init__(self, desk: OperateDesk, texts: Texts) -> None:
        self._desk = desk
        self._texts = texts

    def fill(self, notice: str = "") -> list[Any]:
        """Fill `OperateParts.outputs`; the timer runs while a night does."""
        return self._parts(self._desk.look(), notice)

    def refresh(self, request: gr.Request) -> list[Any]:
        """Show everything as it is."""
        return self.fill() if is_operator(request) else self._refused()

    def tick(self, shown: str, request: gr.Request) -> list[Any]:
        """Refresh what has changed, all of it at once.

        Args:
            shown: digests of what the page shows. Filling the same again would fold up what a person opened there, and
                undo what they chose.
        """
        if not is_operator(request):
            return self._refused()
        seen = self._desk.look()
        fresh = self._parts(seen)
        same = [old == new for old, new in zip_longest(shown.split(), fresh[DIGESTS].split())]
        changed = [gr.skip() if kept else part for kept, part in zip(same, fresh[:DIGESTS], strict=False)]
        notice = gr.skip() if seen.working else fresh[-2]
        return [*changed, fresh[DIGESTS], notice, fresh[-1]]

    def _parts(self, seen: Snapshot, notice: str = "") -> list[Any]:
        desk = self._desk
        choices, chosen = desk.adapters(seen)
        parts = [
            desk.votes_html(seen), desk.live_html(seen), desk.night_html(seen), desk.runs_html(seen),
            gr.update(choices=choices, value=chosen), desk.generation(seen),
        ]  # fmt: skip
        digests = " ".join(hashlib.sha256(repr(part).encode()).hexdigest()[:16] for part in parts)
        return [*parts, digests, notice_update(notice), gr.Timer(active=seen.working)]

    def promote(self, choice: str | None, generation: str, request: gr.Request) -> list[Any]:
        """Promote the chosen adapter."""
        return self.fill(self._desk.promote(choice, generation)) if is_operator(request) else self._refused()

    def roll_back(self, generation: str, request: gr.Request) -> list[Any]:
        """Roll back."""
        return self.fill(self._desk.roll_back(generation)) if is_operator(request) else self._refused()

    def retrain(self, request: gr.Request) -> list[Any]:
        """Start a night."""
        return self.fill(self._desk.retrain()) if is_operator(request) else self._refused()

    def _refused(self) -> list[Any]:
        return [*[gr.skip()] * (DIGESTS + 1), notice_update(self._texts.operators_only), gr.Timer(active=False)]


def is_operator(request: gr.Request) -> bool:
    """Say whether a handler works for somebody who may operate the app."""
    return visitor(request).role == "operator"


def wire_operate(parts: OperateParts, tab: gr.Tab, desk: OperateDesk, texts: Texts) -> OperatePage:
    """Connect the components to the handlers."""
    page = OperatePage(desk, texts)
    tab.select(page.refresh, None, parts.outputs, **SHORT)
    parts.refresh.click(page.refresh, None, parts.outputs, **SHORT)
    parts.timer.tick(page.tick, [parts.seen], parts.outputs, **SHORT)
    parts.promote.click(page.promote, [parts.choice, parts.generation], parts.outputs, **SHORT)
    parts.roll_back.click(page.roll_back, [parts.generation], parts.outputs, **SHORT)
    parts.retrain.click(page.retrain, None, parts.outputs, **SHORT)
    return page
