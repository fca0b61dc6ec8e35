"""Steps of `train --method ppo`: from a file of prompts and a reward model's folder to an adapter's folder."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from assistant.adapters import AdapterInfo, load_tensors, verify_adapter, write_adapter
from assistant.errors import PromptTooLong
from assistant.loading import Base, load_tokenizer, load_trainable
from assistant.prompt import end_of_turn, fit_prompt, template_hash
from assistant.settings import NightSettings, Settings
from finetune.anchors import anchor_examples
from finetune.attention import short_rows
from finetune.batches import Row, encode_examples
from finetune.errors import BadData, NothingToLearn
from finetune.examples import Example
from finetune.ppo import TrainedPolicy, train_policy
from finetune.ppo_models import Models, Reward, StartAdapter, attach_models, reply_room, sample_scored
from finetune.progress import Progress, silent
from finetune.reward_folder import read_reward
from finetune.workshop import context_tokens

HISTORY = "ppo.jsonl"


@dataclass(frozen=True)
class PolicyRun:
    """A written adapter and how its training went."""

    adapter: AdapterInfo
    trained: TrainedPolicy
    prompts: int
    counts: dict[str, int]
    """What was left out, shortened or odd of prompts and text, as `notes.explain` takes it, and how many
    demonstrations were cut."""
    ptx_rows: int
    before: dict[str, float]
    """Numbers of fresh replies from the start, as `Scored.numbers` gives them."""
    after: dict[str, float]
    """Those of the trained policy to the same prompts: it was chosen for its replies in training, which flatter it."""


def train_and_write_policy(
    base: Base,
    settings: Settings,
    examples: Sequence[Example],
    demonstrations: Sequence[Example],
    reward_folder: Path,
    start_folder: Path | None,
    ptx_file: Path | None,
    adapters_dir: Path,
    run_id: str,
    progress: Progress = silent,
    *,
    keep_samples: bool = True,
) -> PolicyRun:
    """Train a policy on the prompts of examples and write its adapter, with a line an iteration beside it.

    Args:
        base: the frozen base.
        settings: the night's training settings and the cache folder.
        examples: their prompts are replied to.
        demonstrations: stay likely (PPO-ptx).
        reward_folder: of the reward model.
        start_folder: the adapter that policy and reference begin as; None is the bare base.
        ptx_file: text whose lines stay likely, too.
        adapters_dir: where the adapter's folder goes.
        run_id: the run that makes it.
        progress: told after each iteration.
        keep_samples: whether a few replies are written beside the adapter, too.

    Raises:
        BadReward, AdapterError: the reward model or the start may not be used.
        BadData: the text cannot be read.
        NothingToLearn, TrainingAborted: no adapter was written.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    night = settings.night
    reward = read_reward(reward_folder, base.id)
    start = read_start(start_folder, base.id)
    tokenizer, model = load_tokenizer(base), load_trainable(base)
    max_tokens = min(night.max_tokens, context_tokens(model))
    prompts, counts = encode_prompts(tokenizer, examples, max_tokens - reply_room(night))
    if counts["too_long"] and not prompts:
        raise NothingToLearn(
            f"All {counts['too_long']} prompts are longer than what fits with their replies. Give shorter ones, or "
            "lower NIGHTSCHOOL_NIGHT__PPO_REPLY_TOKENS."
        )
    shown, shortened = encode_examples(tokenizer, demonstrations, max_tokens)
    counts["cut_completions"] = shortened["cut_completions"]
    share = night.anchor_share
    anchors = anchor_examples(model, tokenizer, examples, share, settings.own_cache_dir, base.id, progress)
    ptx = [e.rows[0] for e in (*shown, *anchors)]
    if ptx_file:
        lines, shortened = text_rows(tokenizer, ptx_file, max_tokens)
        ptx += lines
        counts.update(shortened)
    with short_rows(model), attach_models(model, night, start, reward) as models:
        score, begun = models.learned_reward(reward.head, end_of_turn(tokenizer)), models.adapters["policy"].tensors()
        trained = train_policy(models, tokenizer, prompts, score, ptx, night, progress)
        before, after = (
            _measure(models, tokenizer, prompts[: night.ppo_prompts], score, tensors, night)
            for tensors in (begun, trained.tensors)
        )
    adapter = _write_policy(base, start or night, trained, template_hash(tokenizer), adapters_dir, run_id)
    write_history(adapter.folder / HISTORY, trained, keep_samples=keep_samples)
    return PolicyRun(adapter, trained, len(prompts), dict(counts), len(ptx), before, after)


def _measure(
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    score: Reward,
    policy: Mapping[str, Tensor],
    night: NightSettings,
) -> dict[str, float]:
    models.adapters["policy"].load(policy)
    chance = torch.Generator(models.model.device).manual_seed(night.seed)
    return sample_scored(models, tokenizer, prompts, score, night.ppo_reply_tokens, chance).numbers()


def _write_policy(
    base: Base,
    sized: StartAdapter | NightSettings,
    trained: TrainedPolicy,
    template: str,
    adapters_dir: Path,
    run_id: str,
) -> AdapterInfo:
    """Write the adapter; its rank and alpha are those of where it began, or of the settings."""
    return write_adapter(
        adapters_dir,
        trained.tensors,
        rank=sized.rank,
        alpha=sized.alpha,
        target_modules=trained.target_modules,
        base_id=base.id,
        base_name=base.name,
        template_hash=template,
        run_id=run_id,
    )


def write_history(path: Path, trained: TrainedPolicy, *, keep_samples: bool = True) -> None:
    """Write a line an iteration: its numbers, and a few of its replies where they are kept."""
    samples = [{"samples": texts} if keep_samples else {} for texts in trained.samples]
    lines = [{**numbers, **texts} for numbers, texts in zip(trained.history, samples, strict=True)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def text_rows(tokenizer: PreTrainedTokenizerBase, path: Path, max_tokens: int) -> tuple[list[Row], dict[str, int]]:
    """Read the lines of a text as rows: all tokens of a line but its first are predicted.

    Returns:
        The rows, and counts: cut_lines, short_lines (left out, but for empty ones, which nobody misses).

    Raises:
        BadData: it cannot be read, or no line has two tokens.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"The file {path} cannot be read as text. Give --ptx a file of plain UTF-8 text.") from error
    encoded = [tokenizer.encode(line, add_special_tokens=False) for line in lines if line.strip()]
    rows: list[Row] = [(tuple(ids[:1]), tuple(ids[1:max_tokens])) for ids in encoded if len(ids) > 1]
    if not rows:
        raise BadData(f"The file {path} holds no line of text. Give --ptx a file with some.")
    cut = sum(len(ids) > max_tokens for ids in encoded)
    return rows, {"cut_lines": cut, "short_lines": len(encoded) - len(rows)}


def read_start(folder: Path | None, base_id: str) -> StartAdapter | None:
    """Read the adapter to begin at; None, the bare base, stays None.

    Raises:
        AdapterError: it is missing, damaged or for another base.
    """
    if folder is None:
        return None
    info = verify_adapter(folder, base_id)
    return StartAdapter(load_tensors(info), info.rank, info.alpha)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_tokens: int
) -> tuple[list[tuple[int, ...]], Counter[str]]:
    """Encode the distinct prompts that fit.

    Returns:
        The prompts, and counts: too_long (examples left out), and of what fits dropped_turns and control_tokens.
    """
    prompts: dict[tuple[int, ...], None] = {}
    counts = Counter[str]()
    for example in examples:
        try:
            prompt = fit_prompt(tokenizer, example.prompt, max_tokens)
        except PromptTooLong:
            counts["too_long"] += 1
            continue
        if tuple(prompt.ids) not in prompts:
            counts.update(dropped_turns=prompt.dropped_turns, control_tokens=prompt.control_tokens)
            prompts[tuple(prompt.ids)] = None
    return list(prompts), counts
