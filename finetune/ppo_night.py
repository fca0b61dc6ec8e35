"""A night of PPO: supervised fine-tuning, then a reward model, then PPO against it, and all of it side by side.

    demonstrations → SFT ─┐
    comparisons → reward ─┴→ PPO from SFT, on a leash to SFT     beside it: DPO on all comparisons

The adapters of the other stages are made in a folder that goes when the night's training ends, or with the next night
where it was killed: they are compared with, and never answer anybody.
"""

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from assistant.adapters import load_tensors, verify_adapter
from assistant.loading import Base, load_tokenizer, load_trainable
from assistant.prompt import end_of_turn
from assistant.settings import NightSettings, Settings
from finetune.attention import short_rows
from finetune.errors import NothingToLearn, NotYet
from finetune.examples import Example, Method, select_method, settings_for
from finetune.ppo_models import Models, attach_models, reply_room, sample_scored
from finetune.ppo_workshop import PolicyRun, encode_prompts, read_start, train_and_write_policy
from finetune.progress import Progress, silent
from finetune.reward_folder import read_reward
from finetune.reward_workshop import RewardFindings, examine_reward, train_and_write_reward
from finetune.stages import Stages, divide_stages
from finetune.workshop import TrainingRun, context_tokens, open_room, train_and_write

STAGES = "stages"


@dataclass(frozen=True)
class Contender:
    """How one of base, SFT, DPO and PPO does on what is held out."""

    name: str
    accuracy: float
    low: float
    high: float
    """95 % interval of the held-out preference accuracy by log-ratio to the base."""
    token_logprob_accuracy: float
    reward: float
    """Mean of the reward model's scores of fresh replies to held-out prompts."""
    reward_error: float
    """Its standard error."""
    kl: float
    """Nats a token from where PPO began."""
    length: float
    """Tokens a reply."""


@dataclass(frozen=True)
class StagedRun:
    """A written policy, what it was trained with, and what it is compared with."""

    policy: PolicyRun
    counts: dict[str, int]
    """Prompts of each stage."""
    left_out: dict[str, int]
    """What was left out, shortened or odd in the stages that PPO learned from, as `notes.explain` takes it."""
    reward: RewardFindings | None
    """None where a reward model was named."""
    contenders: tuple[Contender, ...]

    def report(self) -> dict[str, Any]:
        """In the shape of the night's report."""
        found = self.reward
        learned = {"accuracy": found.accuracy, "low": found.low, "high": found.high, "n": found.n} if found else None
        return {"reward_model": learned, "side_by_side": [asdict(contender) for contender in self.contenders]}


def train_in_stages(
    base: Base,
    settings: Settings,
    examples: Sequence[Example],
    heldout: Sequence[Example],
    reward_folder: Path | None,
    run_id: str,
    progress: Progress = silent,
) -> StagedRun:
    """Train every stage, and write the policy's adapter among the home's.

    Args:
        base: the frozen base.
        settings: of this home.
        examples: of every kind, already weighted.
        heldout: preference pairs, apart from those.
        reward_folder: a reward model to follow instead of tonight's.
        run_id: the run that makes it.
        progress: told after each step.

    Raises:
        NotYet: the votes do not carry a reward model that is better than chance, or leave no prompt.
        BadReward: the named reward model may not be used.
        NothingToLearn, TrainingAborted: no adapter was written.
    """
    if reward_folder is not None:
        read_reward(reward_folder, base.id)  # now, not when SFT and DPO have been trained
    stages = divide_stages(examples, settings.night, reward_named=reward_folder is not None)
    _require_prompts(stages, reward_folder)
    _require_room(load_tokenizer(base), settings.night, stages.asked, heldout)
    night = _StagedNight(base, settings, heldout, run_id, progress)
    with _stages_folder(settings.runs_dir, run_id) as folder:
        found, left_out = None, Counter[str]()
        if reward_folder is None:
            reward_folder = folder / "reward"
            found, counts = night.learn_reward(stages, reward_folder)
            left_out.update(counts)
        made: dict[str, Path | None] = {"base": None}
        for method, run in night.train_supervised(stages, examples, folder).items():
            made[method] = run.adapter.folder
            left_out.update(run.counts if method == "sft" else {})  # DPO is there to be compared with
        policy = night.train_policy(stages, reward_folder, made.get("sft"))
        left_out.update({**policy.counts, "cut_completions": 0})  # demonstrations are counted with SFT
        made["ppo"] = policy.adapter.folder
        return StagedRun(policy, stages.counts(), dict(left_out), found, night.compare(made, reward_folder))


def _require_prompts(stages: Stages, reward_folder: Path | None) -> None:
    if reward_folder is None and not stages.comparisons:
        raise NotYet(
            "No choice is left to learn a reward model from, because their prompts have demonstrations or are kept for "
            "PPO. Compare more replies, or name a reward model with --reward DIR."
        )
    if not stages.asked:
        raise NotYet(
            "No prompt is left for PPO beside those of the demonstrations and of the reward model. Collect more votes, "
            "or set NIGHTSCHOOL_NIGHT__PPO_SHARED_PROMPTS=true."
        )


def _require_room(
    tokenizer: PreTrainedTokenizerBase, night: NightSettings, asked: Sequence[Example], heldout: Sequence[Example]
) -> None:
    """Refuse prompts that PPO could not reply to before anything is trained, which may take hours."""
    room = night.max_tokens - reply_room(night)
    for what, examples in (("prompts left for PPO", asked), ("held-out prompts", heldout)):
        if not encode_prompts(tokenizer, examples, room)[0]:
            raise NotYet(
                f"All {what} are longer than the {max(0, room):,} tokens that a reply leaves them. Raise "
                "NIGHTSCHOOL_NIGHT__MAX_TOKENS, lower NIGHTSCHOOL_NIGHT__PPO_REPLY_TOKENS, or vote on shorter ones."
            )


def remove_stages(runs_dir: Path) -> None:
    """Remove the adapters that killed nights left between their stages."""
    for left in runs_dir.glob(f"*/{STAGES}"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _stages_folder(runs_dir: Path, run_id: str) -> Iterator[Path]:
    """Give a run a folder that goes at the end of the block."""
    folder = runs_dir / run_id / STAGES
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _StagedNight:
    """What every stage of a night has at hand; a method a stage."""

    base: Base
    settings: Settings
    heldout: Sequence[Example]
    run_id: str
    progress: Progress

    def learn_reward(self, stages: Stages, folder: Path) -> tuple[RewardFindings, dict[str, int]]:
        """Train the night's reward model; one that may be no better than chance ends the night.

        Returns:
            What it is worth, and the counts of its training.
        """
        taught = [*stages.comparisons, *stages.demonstrations]
        made = train_and_write_reward(self.base, self.settings, taught, folder, self.run_id, self.progress)
        found = examine_reward(self.base, self.settings, self.heldout, folder, self.progress)
        if found.low <= 0.5:
            raise NotYet(
                f"Tonight's reward model is right on {found.accuracy:.1%} of {found.n} held-out pairs (95 %: "
                f"{found.low:.1%} to {found.high:.1%}): that may be chance, and PPO would follow noise. Collect more "
                "choices, or name a reward model with --reward DIR."
            )
        return found, made.counts

    def train_supervised(self, stages: Stages, examples: Sequence[Example], folder: Path) -> dict[str, TrainingRun]:
        """Train where PPO begins, and what it is compared with, by method."""
        taught: dict[Method, list[Example]] = {
            "sft": select_method(stages.demonstrations, "sft"),
            "dpo": select_method(examples, "dpo"),
        }
        return {method: self._train(method, chosen, folder) for method, chosen in taught.items() if chosen}

    def _train(self, method: Method, examples: Sequence[Example], folder: Path) -> TrainingRun:
        settings = self.settings.model_copy(update={"night": settings_for(self.settings.night, method)})
        return train_and_write(self.base, settings, examples, folder, self.run_id, self.progress)

    def train_policy(self, stages: Stages, reward_folder: Path, start: Path | None) -> PolicyRun:
        """Train by PPO from the start, or from the bare base for None, and write the adapter among the home's."""
        return train_and_write_policy(
            self.base,
            self.settings,
            stages.asked,
            stages.demonstrations,
            reward_folder,
            start,
            None,
            self.settings.adapters_dir,
            self.run_id,
            self.progress,
            keep_samples=False,  # replies to people's prompts may repeat people's words
        )

    def compare(self, folders: Mapping[str, Path | None], reward_folder: Path) -> tuple[Contender, ...]:
        """Examine adapters side by side, on held-out pairs as they are served, and by fresh replies to their prompts.

        Args:
            folders: a name to each adapter's folder; None is the bare base. PPO began at `sft`, if there is one.
            reward_folder: of the reward model.
        """
        replies = self._measure_replies(folders, reward_folder)
        with open_room(self.base, self.settings, self.heldout, self.progress) as room:
            ranked = {name: room.rank(room.load(folder) if folder else None) for name, folder in folders.items()}
        return tuple(
            Contender(name, p.accuracy, p.low, p.high, p.token_logprob_accuracy, **replies[name])
            for name, p in ranked.items()
        )

    def _measure_replies(self, folders: Mapping[str, Path | None], reward_folder: Path) -> dict[str, dict[str, float]]:
        """Sample each adapter's replies to the held-out prompts, and score them."""
        night = self.settings.night
        reward, begun = read_reward(reward_folder, self.base.id), read_start(folders.get("sft"), self.base.id)
        tokenizer, model = load_tokenizer(self.base), load_trainable(self.base)
        max_tokens = min(night.max_tokens, context_tokens(model)) - reply_room(night)
        prompts = encode_prompts(tokenizer, self.heldout, max_tokens)[0][: night.ppo_prompts]
        if not prompts:
            raise NothingToLearn("Every held-out prompt is longer than the model's context. Vote on shorter ones, too.")
        found: dict[str, dict[str, float]] = {}
        with short_rows(model), attach_models(model, night, begun, reward) as models:
            score = models.learned_reward(reward.head, end_of_turn(tokenizer))
            for number, (name, folder) in enumerate(folders.items(), 1):
                _become(models, folder, self.base.id)
                chance = torch.Generator(model.device).manual_seed(night.seed)
                replies = sample_scored(models, tokenizer, prompts, score, night.ppo_reply_tokens, chance)
                numbers = replies.numbers()
                error = float(replies.scores.std()) / math.sqrt(len(prompts))
                found[name] = {"reward": numbers["reward"], "reward_error": error}
                found[name] |= {key: numbers[key] for key in ("kl", "length")}
                self.progress("side by side", number, len(folders))
        return found


def _become(models: Models, folder: Path | None, base_id: str) -> None:
    """Make the policy an adapter's, or the bare base's."""
    policy = models.adapters["policy"]
    if folder is None:
        policy.load({name: torch.zeros_like(tensor) for name, tensor in policy.tensors().items()})
    else:
        policy.load(load_tensors(verify_adapter(folder, base_id)))
