"""The serving bench: what its figures are judged by, and what the chat page adds, asked of a real app."""

from pathlib import Path
from typing import Any

import pytest

from assistant.settings import load_settings
from bench import page, serving
from bench.page import Pair, added, ask_in_turn

BUILD = {"version": "0.3.36", "build": "| AVX2 = 1 |"}
THEIRS = {
    "Q4_1": {"decode_tok_s": 100.0, "prefill_tok_s": 200.0, "answer_s": 3.0, **BUILD},
    "Q4_0": {"decode_tok_s": 90.0, "prefill_tok_s": 300.0, "answer_s": 2.0, **BUILD},
}
OURS: dict[str, float | str] = {name: 1.0 for name in serving.TITLES} | {"numeric_form": "int4"}


def row(name: str, **ours: float) -> list[str]:
    """The cells of a row, where ours are these figures: base, with an adapter, llama.cpp, ratio, target."""
    found = {"machine": "A processor", "threads": 2, "ours": {**OURS, **ours}, "llama.cpp": THEIRS}
    [line] = [line for line in serving.table(found).splitlines() if line.startswith(f"| {serving.TITLES[name]} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


@pytest.mark.parametrize(
    "name, reached, missed, rival, target",
    [
        ("decode_tok_s", 100.0, 99.9, "100 (Q4_1)", "1"),
        ("prefill_tok_s", 900.0, 899.0, "300 (Q4_0)", "3"),
        ("answer_s", 1.333, 1.334, "2 (Q4_0)", "1.5"),
        ("eight_chats_tok_s", 250.0, 249.0, "100 (Q4_1, one chat)", "2.5"),
        ("side_by_side_ratio", 1.3, 1.31, "", "≤ 1.3"),
        ("second_turn_ratio", 0.2, 0.21, "", "≤ 0.2"),
        ("ready_s", 10.0, 10.1, "", "≤ 10 s"),
        ("kl_nat", 0.02, 0.021, "", "≤ 0.02 nat"),
        (page.NAME, 10.0, 10.1, "", "≤ 10 %"),
    ],
)
def test_each_row_is_judged_by_its_target(name: str, reached: float, missed: float, rival: str, target: str) -> None:
    assert [row(name, **{name: reached})[i] for i in (2, 4)] == [rival, f"{target}, reached"]
    assert [row(name, **{name: missed})[i] for i in (2, 4)] == [rival, f"{target}, **not reached**"]


def test_the_ratio_is_how_many_times_as_good_ours_is() -> None:
    assert row("decode_tok_s", decode_tok_s=150.0)[3] == "1.50"
    assert row("answer_s", answer_s=4.0)[3] == "0.50"


@pytest.mark.parametrize(
    "name, base, adapted, cell",
    [
        ("decode_tok_s", 200.0, 160.0, "160 (0.80, reached)"),
        ("decode_tok_s", 200.0, 138.0, "138 (**not reached**: 0.69 of 0.8)"),
        ("answer_s", 1.0, 1.25, "1.2 (0.80, reached)"),
        ("answer_s", 1.0, 2.0, "2 (**not reached**: 0.50 of 0.8)"),
        ("second_turn_ratio", 0.1, 0.08, "0.08 (1.25, reached)"),
    ],
)
def test_what_remains_with_an_adapter_is_judged_too(name: str, base: float, adapted: float, cell: str) -> None:
    assert row(name, **{name: base, f"{name}_adapter": adapted})[1] == cell


def test_what_is_not_measured_with_an_adapter_says_nothing_of_it() -> None:
    assert row(page.NAME)[1] == row("ready_s")[1] == ""


def test_a_figure_is_the_median_of_its_rounds_and_what_is_no_figure_stays() -> None:
    rounds: list[dict[str, Any]] = [{"ready_s": figure, "numeric_form": "int4"} for figure in (9.0, 1.0, 2.0)]
    assert serving._medians(rounds) == {"ready_s": 2.0, "numeric_form": "int4"}


def test_what_the_page_adds_is_of_the_medians_of_both() -> None:
    pairs = [Pair(1.1, 1.0, 128), Pair(9.0, 1.0, 128), Pair(1.0, 0.9, 128)]
    assert added(pairs) == pytest.approx(10)


@pytest.mark.long
def test_page_and_engine_alone_are_asked_for_the_same_replies(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted engine says a word in 0.05 s, in the app and alone."""
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", "fake")
    pairs = ask_in_turn(load_settings(), 2)
    words = len(f"You said: {page.QUESTION} (base, seed 1)".split())
    assert [pair.tokens for pair in pairs] == [words, words]
    for pair in pairs:
        assert 0.05 * words <= pair.alone_s < pair.page_s < pair.alone_s + 5
