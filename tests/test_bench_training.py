"""The bench against TRL: what it learns from, and that equal work is equal."""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import training
from bench.contenders import NotEqual, Result
from bench.heldout import weigh
from bench.pairs import make_pairs, make_rankings, read_pairs, read_turns
from bench.training import Found, Machine, compare_losses, report_lines, require_equal, table
from finetune.evaluate import Preferences
from tests.tiny import save_tiny

OURS = Result("pairs", "Nightschool", 3.0, 2.0, (0.7, 0.5), 0.0, 0.0, "")
THEIRS = Result("pairs", "TRL, tuned, batch 4", 1.5, 4.0, (0.7, 0.504), 0.0, 0.0, "")


def test_a_conversation_in_one_text_is_taken_apart_into_turns() -> None:
    text = "\n\nHuman: Who is there?\n\nAssistant: It's me.\n\nA friend.\n\nHuman: Ah"
    assert [(turn["role"], turn["content"]) for turn in read_turns(text)] == [
        ("user", "Who is there?"),
        ("assistant", "It's me.\n\nA friend."),
        ("user", "Ah"),
    ]


def test_only_two_different_replies_to_one_conversation_are_a_pair(tmp_path: Path) -> None:
    start = "\n\nHuman: Hm?\n\nAssistant:"
    sides = [(" Yes", " No"), (" Yes", " Yes"), (" ", " No"), (" A\n\nHuman: B\n\nAssistant: C", " D")]
    file = tmp_path / "pairs.jsonl.gz"
    with gzip.open(file, "wt") as lines:
        lines.writelines(json.dumps({"chosen": start + one, "rejected": start + two}) + "\n" for one, two in sides)
    [pair] = read_pairs(file)
    assert pair.completions == ("Yes", "No") and pair.prompt == ({"role": "user", "content": "Hm?"},)


def test_pairs_of_our_own_making_are_distinct_and_the_same_every_time() -> None:
    pairs = make_pairs(64)
    assert len({pair.key for pair in pairs}) == 64 and pairs == make_pairs(64)
    rankings = make_rankings(pairs)
    assert len(rankings) >= 16 and {ranking.ranks for ranking in rankings} == {(1, 2, 3, 4)}


def test_losses_that_part_by_more_than_a_percent_where_nothing_is_rounded_end_the_bench() -> None:
    assert [result.apart for result in require_equal([OURS, THEIRS])] == [0, pytest.approx(0.008)]
    with pytest.raises(NotEqual, match="2.0% from ours"):
        require_equal([OURS, replace(THEIRS, losses=(0.7, 0.51))])
    with pytest.raises(NotEqual, match="1 steps, and 2 are due"):
        compare_losses([OURS, replace(THEIRS, losses=(0.7,))])


def test_how_far_rounding_moves_a_step_and_the_epoch_is_shown() -> None:
    [_, moved] = compare_losses([OURS, replace(THEIRS, losses=(0.686, 0.511))])
    assert moved.apart == pytest.approx(0.022) and moved.mean_apart == pytest.approx(0.0025)
    assert table([OURS, moved])[-1].endswith("| 2.20% | 0.25% |")


def test_the_table_says_how_many_times_faster_ours_is_and_what_a_kept_reference_saves() -> None:
    assert table([OURS, THEIRS])[2:] == [
        "| pairs | Nightschool | 3.00 |  | 2.0 | 0.5000 | 0.00% | 0.00% |",
        "| pairs | TRL, tuned, batch 4 | 1.50 | 2.00 × as fast | 4.0 | 0.5040 | 0.00% | 0.00% |",
    ]
    again = replace(OURS, contender="Nightschool, next night", per_s=6.0)
    lines = report_lines(Found(Machine("cpu", 2, 2, "2.13"), "Pairs", (OURS, again, THEIRS), (OURS, THEIRS), None))
    assert lines[-1] == "The next night keeps its reference: 2.00 × as fast on the pairs."


def test_two_examinations_are_compared_pair_by_pair() -> None:
    ours = Preferences((1.0, 1.0, 0.0, 1.0), 0.75, 0.3, 0.9, 4, 0.5, 0.5)
    theirs = Preferences((1.0, 0.0, 0.0, 1.0), 0.5, 0.2, 0.8, 4, 0.5, 0.5)
    found = weigh(ours, theirs, clusters=list("abcd"))
    mean, low, high = found.difference
    assert mean == 0.25 and high - mean == pytest.approx(1.96 * 0.25) and mean - low == pytest.approx(1.96 * 0.25)
    lines = report_lines(Found(Machine("cpu", 2, 2, "2.13"), "Pairs", (OURS, THEIRS), (OURS, THEIRS), found))
    assert lines[-1].endswith("paired difference 25.0 % (-24.0 to 74.0).")


@pytest.mark.slow
def test_trl_and_ours_do_equal_work_on_a_tiny_model(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """This environment has TRL too and can be its own rival; the bench itself raises where work is not equal."""
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(save_tiny(tmp_path / "model")))
    options = ["--pairs", "16", "--rankings", "4", "--heldout", "10", "--longest", "900", "--batches", "2", "4"]
    monkeypatch.setattr(sys, "argv", ["bench", *options, "--rival-python", sys.executable, "--json"])
    training.main()
    found = json.loads(capsys.readouterr().out)
    pairs, again, tuned, defaults, rankings, _, six_pairs = found["results"]
    assert [len(result["losses"]) for result in (pairs, again, tuned, defaults)] == [2] * 4
    assert pairs["losses"] == again["losses"] and pairs["losses"] != tuned["losses"]
    assert len(rankings["losses"]) == len(six_pairs["losses"]) == 1
    assert all(result["apart"] < 1e-4 for result in found["exact"])
    assert found["exact"][0]["losses"][1] != found["exact"][0]["losses"][0]
    assert found["heldout"]["n"] == 10


def test_without_the_rivals_environment_it_says_what_builds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--rival-python", str(tmp_path / "python")])
    with pytest.raises(SystemExit, match="make bench"):
        training.main()
