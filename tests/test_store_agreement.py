"""Agreement, bias, speed and influence, against numbers worked by hand and against 1,150 judgements of real people."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback_store.agreement import (
    Judged,
    agreement_with_others,
    fleiss_kappa,
    judge,
    left_bias,
    measure,
    read_judged,
    votes_a_minute,
)
from feedback_store.exporters import export_lines
from feedback_store.importers import import_file
from feedback_store.influence import Vote, cap_factors, group_alike, likeness, weigh
from feedback_store.integrity import verify
from feedback_store.records import Turn
from tests.new_store import open_in
from tests.shared_data import DATA, needs_data

JUDGEMENTS = DATA / "tulu_human_eval" / "derived_annotations.jsonl"
PROMPT: Sequence[Turn] = [{"role": "user", "content": "What is 2 + 2?"}]
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def test_a_verdict_is_the_same_on_whichever_side_the_reply_stood() -> None:
    assert judge(PROMPT, "4", "5", "left", 1) == judge(PROMPT, "5", "4", "right", 1)
    assert judge(PROMPT, "4", "5", "left", 1) != judge(PROMPT, "5", "4", "left", 1)
    assert judge(PROMPT, "4", "5", "tie", 1) == judge(PROMPT, "5", "4", "both-bad", 1)
    assert judge(PROMPT, "4", "4", "left", 1).verdict == "neither"
    assert judge(PROMPT, "4", "5", "tie", 1).item != judge([*PROMPT, *PROMPT], "4", "5", "tie", 1).item


def test_agreement_counts_pairs_of_people_on_one_item() -> None:
    said = [
        *(Judged("a", 1, "first"), Judged("a", 2, "first"), Judged("a", 3, "second")),  # 1 of 3 pairs
        *(Judged("b", 1, "neither"), Judged("b", 2, "first")),  # 0 of 1
        *(Judged("c", 1, "second"), Judged("c", 1, "first"), Judged("c", 4, "first")),  # the last of one person counts
        Judged("d", 1, "first"),
    ]
    found = measure(said)
    assert (found.items, found.pairs, found.percent) == (3, 5, 2 / 5)
    assert (found.decided_pairs, found.decided_percent) == (4, 2 / 4)
    assert agreement_with_others(said) == {1: (2, 4), 2: (1, 3), 3: (0, 2), 4: (1, 1)}
    nothing = measure([])
    assert (nothing.items, nothing.percent, nothing.kappa) == (0, None, None)


def test_kappa_is_the_published_example() -> None:
    """Fleiss 1971, table 1 as in https://en.wikipedia.org/wiki/Fleiss%27_kappa: 10 items, 14 raters, 0.210."""
    table = [
        *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
        *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
    ]
    assert fleiss_kappa([(row, 1) for row in table]) == pytest.approx(0.210, abs=0.0005)
    assert fleiss_kappa([(row, 3) for row in table]) == pytest.approx(0.210, abs=0.0005)
    assert fleiss_kappa([((2, 0), 1), ((0, 2), 1)]) == 1.0
    assert fleiss_kappa([((2, 0), 1), ((3, 0), 1)]) is None and fleiss_kappa([]) is None


def test_left_bias_has_wilsons_interval() -> None:
    bias = left_bias(["left"] * 60 + ["right"] * 40 + ["tie"] * 50)
    assert (bias.chosen, bias.left, bias.share) == (100, 60, 0.6)
    assert bias.low == pytest.approx(0.5020, abs=1e-4) and bias.high == pytest.approx(0.6906, abs=1e-4)
    assert left_bias(["left"]).high == 1.0
    assert left_bias(["tie"]).share is None


def test_votes_a_minute_leave_out_the_pauses() -> None:
    times = [f"2026-01-01T00:00:{second:02}.000000Z" for second in (0, 10, 20, 30)] + ["2026-01-01T09:00:00.000000Z"]
    assert votes_a_minute(reversed(times)) == 6.0
    assert votes_a_minute(times[-1:]) is None and votes_a_minute([]) is None
    assert votes_a_minute(times[:1] * 3) is not None


def test_nobody_has_more_than_the_largest_share_where_that_can_be() -> None:
    weights = {"loud": 100.0, **{f"p{n}": 2.0 for n in range(9)}}
    factors = cap_factors(weights, 0.2)
    capped = {person: weight * factors[person] for person, weight in weights.items()}
    assert capped["loud"] == pytest.approx(0.2 * sum(capped.values()))
    assert all(factors[person] == 1 for person in weights if person != "loud")
    assert cap_factors({"a": 9.0, "b": 1.0}, 0.4) == {"a": 1.0, "b": 1.0}
    assert cap_factors({}, 0.1) == {} and cap_factors({"a": 0.0}, 0.1) == {"a": 1.0}


@given(st.dictionaries(st.text(max_size=3), st.just(0.0) | st.floats(1e-100, 1e6), max_size=30), st.floats(0.01, 1.0))
def test_a_cap_that_can_be_kept_is_kept_and_raises_nobody(weights: dict[str, float], share: float) -> None:
    """A weight of 5e-324 cannot be divided, and no vote has one: after 40 years a vote weighs some 1e-98."""
    factors = cap_factors(weights, share)
    capped = [weight * factors[person] for person, weight in weights.items()]
    assert all(0 <= factor <= 1 for factor in factors.values())
    if sum(weight > 0 for weight in weights.values()) * share > 1.001:
        assert max(capped) <= share * sum(capped) * (1 + 1e-6)


def test_prompts_alike_but_for_case_signs_and_a_word_are_one() -> None:
    assert likeness("What is the capital of France?", "what is the capital of France") == 1.0
    assert likeness("What is the capital of France?", "What is the capital of Spain?") < 0.8
    assert likeness("", "?!") == 1.0 and likeness("a", "b") == 0.0
    prompts = ["Write a poem about the sea please", "Sort a list", "write a poem about the sea, please!", "Sort a lisp"]
    assert group_alike(prompts, 0.9) == [0, 1, 0, 3]
    assert group_alike([f"Question number {n} about {n * 7919}" for n in range(500)], 0.95) == list(range(500))


def test_each_vote_gets_a_weight_and_the_reasons_for_it() -> None:
    old, fresh = "2026-01-01T00:00:00.000000Z", "2026-01-01T23:30:00.000000Z"
    votes = [
        Vote("ada", old, "Why is the sky blue?"),
        Vote("ada", old, "why is the sky blue"),
        Vote("bo", old, "Why is the sky blue?", 0.5),
        Vote("bo", fresh, "What is a verb?"),
    ]
    assert [(i.weight, i.flags) for i in weigh(votes, now=NOW)] == [(1, ()), (1, ()), (0.5, ()), (1, ())]
    looked = weigh(votes, now=NOW, quarantine=timedelta(hours=1), similarity=0.9)
    assert [(i.weight, i.flags) for i in looked] == [
        (0.5, ("near-duplicate",)),
        (0.5, ("near-duplicate",)),
        (0.5, ()),
        (0.0, ("quarantined",)),
    ]
    capped = weigh(votes, now=NOW, quarantine=timedelta(hours=1), largest_share=0.6)
    assert [i.flags for i in capped] == [("capped",), ("capped",), (), ("quarantined",)]
    assert sum(i.weight for i in capped[:2]) == pytest.approx(0.75)


def unshuffled(record: dict[str, Any]) -> dict[str, Any]:
    """Return a judgement of the Tülu evaluation as a line of ours, the models in one order whatever the side."""
    swap = record["model_a"] > record["model_b"]
    sides = ("b", "a") if swap else ("a", "b")
    verdict = record["preference"]
    choice = "tie" if verdict == "tie" else ("left", "right")[sides.index(verdict[0])]
    days = timedelta(days=float(record["timestamp"]))
    return {
        "id": record["id"],
        "annotator": record["evaluator"],
        "created_at": (datetime(1899, 12, 30, tzinfo=UTC) + days).isoformat(),
        "prompt": [{"role": "user", "content": record["prompt"]}],
        "left": [{"role": "assistant", "content": record[f"completion_{sides[0]}"]}],
        "right": [{"role": "assistant", "content": record[f"completion_{sides[1]}"]}],
        "choice": choice,
        "models": [record[f"model_{side}"] for side in sides],
    }


@needs_data
def test_1150_real_judgements_import_and_agree_as_published(tmp_path: Path) -> None:
    records = [json.loads(line) for line in JUDGEMENTS.read_text().splitlines()]
    file = tmp_path / "tulu.jsonl"
    file.write_text("".join(json.dumps(unshuffled(record)) + "\n" for record in records))
    store = open_in(tmp_path / "nightschool.db")
    imported = import_file(store, file, "comparisons")
    assert (imported.added, imported.repeated, imported.skipped) == (1150, 0, 0)
    assert sum(person.kind == "imported" for person in store.people.all()) == 16
    assert Counter(line["choice"] for line in export_lines(store, "comparisons"))["tie"] == 376
    found = measure(read_judged(store))
    assert (found.items, found.pairs, found.decided_pairs) == (121, 169, 86)
    assert found.percent == pytest.approx(0.574, abs=0.0005)
    assert found.decided_percent == pytest.approx(0.709, abs=0.0005)
    assert found.kappa is not None and 0 < found.kappa < found.percent
    assert verify(store) == []
    store.close()
