"""Which votes each stage of a PPO night learns from."""

import pytest

from assistant.settings import NightSettings
from finetune.examples import Example
from finetune.split import bare_prompt
from finetune.stages import divide_stages
from tests.finetune_support import demonstration, pair, ranking, thumb

NIGHT = NightSettings()


def votes() -> list[Example]:
    """Of every kind, and of two kinds on the same question under other presets and spellings."""
    compared = [pair(n) for n in range(60)] + [ranking(n) for n in range(60, 90)]
    return [*compared, *(demonstration(n) for n in range(5)), *(thumb(n) for n in (10, 11, 100, 101))]


def prompts(examples: tuple[Example, ...]) -> set[str]:
    return {bare_prompt(example) for example in examples}


@pytest.mark.parametrize("named", [False, True])
def test_no_prompt_is_in_two_stages_and_none_is_lost(named: bool) -> None:
    stages = divide_stages(votes(), NIGHT, reward_named=named)
    parts = [prompts(part) for part in (stages.demonstrations, stages.comparisons, stages.asked)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(prompts(tuple(votes())))
    assert parts[0] == prompts(tuple(demonstration(n) for n in range(5)))
    assert prompts((thumb(100), thumb(101))) <= parts[2]
    assert all(example.compares for example in stages.comparisons)
    if named:
        assert not parts[1]
    else:
        assert 15 < len(parts[2]) < 45 < len(parts[1])
    assert stages.counts() == dict(zip(("sft_prompts", "reward_prompts", "ppo_prompts"), map(len, parts), strict=True))


def test_the_same_question_in_other_words_of_case_and_space_is_the_same_prompt() -> None:
    shown, asked = demonstration(1, prompt="How  Much?"), pair(2, prompt="how much?")
    stages = divide_stages([shown, asked], NIGHT, reward_named=False)
    assert (stages.demonstrations, stages.comparisons, stages.asked) == ((shown,), (), ())


def test_the_stages_share_prompts_where_the_settings_say_so() -> None:
    stages = divide_stages(votes(), NightSettings(ppo_shared_prompts=True), reward_named=False)
    assert len(stages.comparisons) == 90 and len(stages.demonstrations) == 5
    assert stages.asked == tuple(votes())


def test_another_seed_keeps_other_prompts_for_ppo() -> None:
    first, again, other = (
        divide_stages(votes(), NightSettings(seed=seed), reward_named=False).asked for seed in (0, 0, 1)
    )
    assert first == again != other
