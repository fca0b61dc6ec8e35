"""The held-out part: which examples train and which examine. Pure; knows nothing of the store or the model.

Nothing leaks across: no conversation and no prompt stands on both sides, and where there are several
people, some are held out whole. The choice is a hash of (seed, name), so that it stays the same from
night to night: otherwise the live adapter would be examined on what it was trained on. Lone thumbs are not
examined, so none is held out: they train, or are set aside where they would leak.

Does not cover near-identical prompts; only those equal up to case and white space.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from finetune.examples import Example


@dataclass(frozen=True)
class Split:
    """Both parts, what was set aside because it would leak, and who is held out whole."""

    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    aside: tuple[Example, ...]
    people: tuple[str, ...]


def split_examples(examples: Sequence[Example], share: float, seed: int) -> Split:
    """Divide examples into a training and a held-out part.

    Args:
        examples: what may be trained on.
        share: wanted part of the examples in the held-out part.
        seed: another seed holds out others.

    Returns:
        The split. `heldout` is empty when everything hangs together in one group, and holds at
        least one comparison otherwise (when there is one outside of the largest group).
    """
    thumbs = [e for e in examples if e.thumb is not None]
    split = _split_examined([e for e in examples if e.thumb is None], share, seed)
    names = leak_names(split.heldout)
    leaks = {e.key for e in thumbs if e.person in split.people or not names.isdisjoint(_names(e))}
    return replace(
        split,
        train=(*split.train, *(e for e in thumbs if e.key not in leaks)),
        aside=(*split.aside, *(e for e in thumbs if e.key in leaks)),
    )


def _split_examined(examples: Sequence[Example], share: float, seed: int) -> Split:
    groups = _groups(examples)
    people = _people_to_hold_out(examples, share, seed)
    split = _divide(examples, groups, {i for i, e in enumerate(examples) if e.person in people}, people)
    if people and len(split.aside) <= share * len(examples) and any(e.compares for e in split.heldout):
        return split
    return _divide(examples, groups, _groups_to_hold_out(examples, groups, share, seed), frozenset())


def _divide(examples: Sequence[Example], groups: Sequence[int], chosen: set[int], people: frozenset[str]) -> Split:
    """Hold out the chosen examples; others that share a group with them are set aside."""
    touched = {groups[i] for i in chosen}
    rest = [i for i in range(len(examples)) if i not in chosen]
    return Split(
        train=tuple(examples[i] for i in rest if groups[i] not in touched),
        heldout=tuple(examples[i] for i in sorted(chosen)),
        aside=tuple(examples[i] for i in rest if groups[i] in touched),
        people=tuple(sorted(people)),
    )


def _people_to_hold_out(examples: Sequence[Example], share: float, seed: int) -> frozenset[str]:
    """Choose people whose examples together come near the share, and never to more than twice of it."""
    counts: dict[str, int] = defaultdict(int)
    for example in examples:
        counts[example.person] += 1
    wanted = share * len(examples)
    chosen: list[str] = []
    held = 0
    for person in sorted(counts, key=lambda name: draw(seed, f"person {name}")):
        if len(counts) > 1 and held < 0.75 * wanted and held + counts[person] <= 2 * wanted:
            chosen.append(person)
            held += counts[person]
    return frozenset(chosen) if held >= 0.5 * wanted else frozenset()


def _groups_to_hold_out(examples: Sequence[Example], groups: Sequence[int], share: float, seed: int) -> set[int]:
    """Choose whole groups: those drawn below the share, or the lowest draws where these bring too little."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    if len(members) < 2:
        return set()
    # A group is drawn by its oldest conversation, so that later votes do not move it to the other side.
    draws = {
        group: draw(seed, min((examples[i].created_at, examples[i].conversation) for i in indexes)[1])
        for group, indexes in members.items()
    }
    chosen: set[int] = set()
    for group in sorted(members, key=lambda g: (draws[g], g)):
        total = len(chosen) + len(members[group])
        enough = len(chosen) >= share * len(examples) / 2 and any(examples[i].compares for i in chosen)
        if (draws[group] < share or not enough) and total <= max(1, 2 * share * len(examples)):
            chosen.update(members[group])
    return chosen


def _groups(examples: Sequence[Example]) -> list[int]:
    """Number each example's group: examples that share a conversation or a prompt, however indirectly."""
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for index, example in enumerate(examples):
        for name in _names(example):
            other = root(first.setdefault(name, index))
            mine = root(index)
            parent[max(mine, other)] = min(mine, other)
    return [root(i) for i in range(len(examples))]


def leak_names(examples: Iterable[Example]) -> set[tuple[str, str]]:
    """Return what these examples may share with others, so that one would tell of the other: conversation, prompt."""
    return {name for example in examples for name in _names(example)}


def _names(example: Example) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("conversation", f"{example.person}/{example.conversation}"), ("prompt", bare_prompt(example))


def bare_prompt(example: Example) -> str:
    """The conversation without its system prompt, case and spacing: the same question under another preset counts."""
    turns = [t for t in example.prompt if t["role"] != "system"]
    return "\n".join(f"{t['role']}: {' '.join(t['content'].casefold().split())}" for t in turns)


def draw(seed: int, name: str) -> float:
    """A number in [0, 1) that only seed and name decide."""
    digest = hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64
