"""Reward model and DPO on real pairs: python -m bench.hh_rlhf --data DIR/helpful-base-test.jsonl.gz --out FOLDER

Converts the dialogues, divides them by a hash of their first prompt into a part to train on, one that is held out and
one to develop on (choose settings with --development, never on the held-out part), and runs the project's own commands
with their defaults. Prints a Markdown table, or one JSON object. What is found is kept in the folder, and started again
with the same pairs it goes on from there: on a slow processor it takes hours.

Data: Bai et al. 2022, arXiv:2204.05862, helpful-base.
"""

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

Part = Literal["train", "development", "heldout"]
TRAIN, DEVELOPMENT = 0.55, 0.10
"""Shares of the first prompts; the rest is held out."""


def read_pairs(path: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Read the pairs as conversational lines, and count what was left out.

    Returns:
        Lines `{"prompt","chosen","rejected"}`; counts of `equal` replies, of `differing_prompts`, and of dialogues that
        are `not_in_turn`: a side is empty or speaks twice.
    """
    pairs: list[dict[str, Any]] = []
    counts = {"equal": 0, "differing_prompts": 0, "not_in_turn": 0}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            chosen, rejected = to_messages(row["chosen"]), to_messages(row["rejected"])
            if not chosen or not rejected:
                counts["not_in_turn"] += 1
            elif chosen[:-1] != rejected[:-1]:
                counts["differing_prompts"] += 1
            elif chosen == rejected:
                counts["equal"] += 1
            else:
                pairs.append({"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]})
    return pairs, counts


def to_messages(dialogue: str) -> list[dict[str, str]]:
    """Turn `\\n\\nHuman: … \\n\\nAssistant: …` into messages; none where the two do not take turns to the end."""
    _, *parts = re.split(r"\n\n(Human|Assistant):", dialogue)
    roles, texts = parts[::2], [text.strip() for text in parts[1::2]]
    if len(roles) % 2 or roles != ["Human", "Assistant"] * (len(roles) // 2) or not all(texts):
        return []
    names = {"Human": "user", "Assistant": "assistant"}
    return [{"role": names[role], "content": text} for role, text in zip(roles, texts, strict=True)]


def part_of(pair: dict[str, Any]) -> Part:
    """Choose a pair's part by its first prompt alone, so that no conversation is in two."""
    draw = _draw(" ".join(pair["prompt"][0]["content"].casefold().split()))
    return "train" if draw < TRAIN else "development" if draw < TRAIN + DEVELOPMENT else "heldout"


def measure(
    train: list[dict[str, Any]], examined: list[dict[str, Any]], folder: Path, home: str | None
) -> dict[str, Any]:
    """Train a reward model and DPO on some pairs, and examine them and the base on others."""
    folder.mkdir(parents=True, exist_ok=True)
    learned, asked = _write(folder / "train.jsonl", train), _write(folder / "examined.jsonl", examined)
    found: dict[str, Any] = {"base": _once(folder / "base.json", "evaluate", "base", "--data", asked, home=home)}
    for method in ("reward", "dpo"):
        trained_by = ("train", "--method", method, "--data", learned, "--out", str(folder / method))
        trained = _once(folder / f"{method}-trained.json", *trained_by, home=home)
        examined_by = ("evaluate", str(folder / method), "--data", asked)
        found[method] = {**_once(folder / f"{method}.json", *examined_by, home=home), "trained": trained}
    return found


def table(found: dict[str, Any]) -> str:
    """Lay the accuracies out in Markdown."""
    base, lines = found["base"], ["| by | accuracy | 95 % | training |", "|---|---|---|---|"]
    for method, title in (("reward", "reward model"), ("dpo", "DPO, log-ratio to the base")):
        of, trained = found[method], found[method]["trained"]
        lines.append(
            f"| {title} | {of['accuracy']:.3f} | {of['low']:.3f} to {of['high']:.3f} "
            f"| {trained['pairs']} pairs, {trained['seconds']:.0f} s |"
        )
    lines.append(f"| the longer reply | {base['length_baseline']:.3f} | | |")
    lines.append(f"| the base's log-probability a token | {base['token_logprob_accuracy']:.3f} | | |")
    lines.append(f"\n{base['n']} pairs of the {found['part']} part.")
    return "\n".join(lines)


def _once(kept: Path, *arguments: str, home: str | None) -> dict[str, Any]:
    """Run a command, or take what it printed before."""
    if not kept.exists():
        printed = _run(*arguments, home=home)
        kept.write_text(json.dumps(printed), encoding="utf-8")
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def _run(*arguments: str, home: str | None) -> dict[str, Any]:
    """Run one of the project's commands in a process of its own, so that each has its own peak of memory."""
    where = ["--home", home] if home else []
    command = [sys.executable, "-m", "finetune", *arguments, *where, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def _write(path: Path, pairs: list[dict[str, Any]]) -> str:
    """Write the pairs that a folder's results are of; another folder is needed for others."""
    lines = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
    if path.exists() and path.read_text(encoding="utf-8") != lines:
        raise SystemExit(f"{path.parent} holds results of other pairs; choose another --out.")
    path.write_text(lines, encoding="utf-8")
    return str(path)


def _draw(name: str) -> float:
    """A number in [0, 1) that only the name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.jsonl.gz", help="pairs of dialogues")
    parser.add_argument("--pairs", type=int, default=600, help="pairs to train on")
    parser.add_argument("--heldout", type=int, default=500, help="pairs to examine on")
    parser.add_argument("--development", action="store_true", help="examine on the development part instead")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="keeps what is found")
    parser.add_argument("--home", default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    pairs, counts = read_pairs(args.data)
    pairs.sort(key=lambda pair: _draw(json.dumps(pair)))
    part: Part = "development" if args.development else "heldout"
    train = [pair for pair in pairs if part_of(pair) == "train"][: args.pairs]
    examined = [pair for pair in pairs if part_of(pair) == part][: args.heldout]
    found = {**measure(train, examined, args.out, args.home), "part": part, "left_out": counts}
    sys.stdout.write((json.dumps(found) if args.json else table(found)) + "\n")


if __name__ == "__main__":
    main()
