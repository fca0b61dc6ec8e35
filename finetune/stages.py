"""Which votes each stage of a PPO night learns from. Pure.

    demonstrations → supervised fine-tuning; comparisons → reward model; prompts of what is left → PPO

As in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, table 6), no prompt is in two stages, unless the settings say
otherwise: a reward model knows the replies that it was trained on too well to judge others to the same prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from assistant.settings import NightSettings
from finetune.examples import Example
from finetune.split import bare_prompt, draw

POLICY_SHARE = 1 / 3
"""Part of the compared prompts that is kept for PPO."""


@dataclass(frozen=True)
class Stages:
    """What each stage learns from."""

    demonstrations: tuple[Example, ...]
    comparisons: tuple[Example, ...]
    """For the reward model."""
    asked: tuple[Example, ...]
    """Their prompts are replied to by the policy."""

    def counts(self) -> dict[str, int]:
        """Distinct prompts of each stage."""
        parts = {"sft": self.demonstrations, "reward": self.comparisons, "ppo": self.asked}
        return {f"{name}_prompts": len({bare_prompt(e) for e in part}) for name, part in parts.items()}


def divide_stages(examples: Sequence[Example], night: NightSettings, *, reward_named: bool) -> Stages:
    """Divide what a night trains on among the stages.

    Args:
        examples: of every kind; those held out are not among them.
        night: ppo_shared_prompts and the seed.
        reward_named: there is a reward model already, so every prompt without a demonstration is left for PPO.
    """
    shown = [e for e in examples if e.demonstrated]
    compared = [e for e in examples if e.compares]
    if night.ppo_shared_prompts:
        return Stages(tuple(shown), tuple(compared), tuple(examples))
    taken = {bare_prompt(e) for e in shown}
    judged = set() if reward_named else {bare_prompt(e) for e in compared} - taken
    judged = {prompt for prompt in judged if draw(night.seed, f"stage {prompt}") >= POLICY_SHARE}
    return Stages(
        tuple(shown),
        tuple(e for e in compared if bare_prompt(e) in judged),
        tuple(e for e in examples if bare_prompt(e) not in taken | judged),
    )
