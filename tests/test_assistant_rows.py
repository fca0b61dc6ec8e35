"""Replies as rows of one batch: alone, joined, from what is kept and in pieces they are the model's own forward."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel

from assistant.rows import STEP, OneRow, Rows, _larger, can_be_joined
from tests.test_finetune_families import FAMILIES, tiny

TEXTS = [list(range(start, start + length)) for start, length in ((5, 40), (50, 7), (90, 70), (130, 41))]
STEPS = 6


def own_logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """What the model's own forward, without a cache, says behind a text."""
    logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits


def read(model: PreTrainedModel, ids: Sequence[int], rows: Rows, piece: int = 1000) -> torch.Tensor:
    """Read a text into a row of its own, piece by piece."""
    logits = torch.empty(0)
    start = rows.lengths[0]
    for first in range(start, len(ids), piece):
        logits = rows.compute(model, torch.tensor([ids[first : first + piece]]))
    return logits[0]


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_joined_rows_say_what_each_text_alone_does(name: str) -> None:
    """Rows of different lengths join one after another, one of them leaves, and every step is checked."""
    model = tiny(FAMILIES[name])
    rows, texts = Rows(), [list(text) for text in TEXTS]
    joined: list[list[int]] = []
    for step in range(STEPS):
        if step < len(texts):
            single = Rows.after([], 0)
            assert torch.allclose(
                read(model, texts[step][:-1], single, 16), own_logits(model, texts[step][:-1]), atol=1e-4
            )
            rows.join(single)
            joined.append(texts[step])
        if step == 4:
            rows.leave(1)
            joined[1] = joined.pop()
        logits = rows.compute(model, torch.tensor([text[-1:] for text in joined]))
        for text, row in zip(joined, logits, strict=True):
            assert torch.allclose(row, own_logits(model, text), atol=1e-4), (name, step)
            text.append(int(row.argmax()))
    assert rows.lengths == [len(text) - 1 for text in joined]


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_a_text_that_begins_as_a_known_one_does_goes_on_from_there(name: str) -> None:
    model = tiny(FAMILIES[name])
    first = Rows.after([], 0)
    read(model, TEXTS[2], first)
    kept = first.keep(0)
    for common in (1, 33, 69):
        text = [*TEXTS[2][:common], *range(200, 225)]
        again = Rows.after(kept, common)
        assert torch.allclose(read(model, text, again), own_logits(model, text), atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(itertools.chain(*kept), itertools.chain(*first.keep(0)), strict=True))


@torch.inference_mode()
def test_a_step_that_fails_leaves_the_rows_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(FAMILIES["llama"])
    rows = Rows.after([], 0)
    read(model, TEXTS[0], rows)
    ids = torch.tensor([[7]])
    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[1].mlp, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rows.compute(model, ids)
    assert torch.allclose(rows.compute(model, ids)[0], own_logits(model, [*TEXTS[0], 7]), atol=1e-4)


@torch.inference_mode()
def test_a_room_that_cannot_grow_whole_does_not_grow_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layers had grown when memory ran out, and no step went well any more."""
    model = tiny(FAMILIES["llama"])
    rows, expected = Rows.after([], 0), Rows.after([], 0)
    text = torch.tensor([TEXTS[2][:STEP]])
    for one in (rows, expected):
        one.compute(model, text)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in rows.layers]
    calls = itertools.count()

    def tight(old: torch.Tensor, *room: int) -> torch.Tensor:
        if next(calls) == 2:
            raise MemoryError("planted")
        return _larger(old, *room)

    with monkeypatch.context() as patch:
        patch.setattr("assistant.rows._larger", tight)
        with pytest.raises(MemoryError):
            rows.compute(model, torch.tensor([[7]]))
    for layer, (keys, values) in zip(rows.layers, before, strict=True):
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
    assert (rows.room, rows.lengths) == ((1, STEP), [STEP])
    assert torch.equal(rows.compute(model, torch.tensor([[7]])), expected.compute(model, torch.tensor([[7]])))


@torch.inference_mode()
def test_the_room_of_ended_replies_is_given_back() -> None:
    model = tiny(FAMILIES["llama"])
    rows = Rows.after([], 0)
    read(model, TEXTS[2], rows)
    rows.join(rows)
    assert rows.lengths == [70, 70] and rows.bytes_a_token == 2 * 2 * 2 * 16 * 4
    rows.leave(0)
    rows.leave(0)
    assert rows.lengths == [] and rows.layers == [] and rows.room == (0, 0)


@torch.inference_mode()
def test_models_that_remember_otherwise_write_one_reply_at_a_time() -> None:
    model = tiny(FAMILIES["llama"])
    assert all(can_be_joined(tiny(family).config) for family in FAMILIES.values())
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert not can_be_joined(model.config)
    model.config.layer_types = ["full_attention"] * 2
    row = OneRow(model.config)
    row.compute(model, torch.tensor([TEXTS[0][:9]]))
    logits = row.compute(model, torch.tensor([TEXTS[0][9:]]))
    assert row.lengths == [40] and torch.allclose(logits[0], own_logits(model, TEXTS[0]), atol=1e-4)
