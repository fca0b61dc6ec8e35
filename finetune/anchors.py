"""Anchors: the base's own plain replies, so that a night changes only what it was asked to change.

Votes under one preset move the adapter under every preset: after a night on Socratic votes alone the plain
assistant hands "What is the capital of France?" back. Beside the votes a night therefore imitates replies of
the bare base under the plain preset: half to prompts that the project ships, half to the night's own prompts
where they were voted on under another preset, so that the preset is what makes the difference. Imitating
the base's samples is a sample estimate of KL(base || adapter).

A reply is sampled once, with a seed of its prompt's, and kept in the cache until a night has no use for it (in bf16 its
last bits may depend on what was sampled beside it): what an erased person's words brought forth goes with the next
night. A prompt that was voted on under the plain preset is no anchor: there the votes decide. And votes under the plain
preset bring no anchors: these would hold back what people ask of plain replies.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from assistant.engine import Message, Sampling
from assistant.presets import PLAIN
from assistant.prompt import encode_prompt, end_of_turn
from assistant.sampling import sample
from finetune.batches import Encoded
from finetune.examples import Example
from finetune.progress import Progress, silent

ANCHOR_PROMPTS = Path(__file__).parent / "anchor_prompts.txt"
PROMPT_TOKENS, REPLY_TOKENS = 400, 64
SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=REPLY_TOKENS)
TOGETHER = 40
"""Replies generated in one batch."""

Ids = list[int]
PLAIN_SYSTEM = Message(role="system", content=PLAIN.system)


def anchor_examples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    share: float,
    cache_dir: Path,
    base_id: str,
    progress: Progress = silent,
) -> list[Encoded]:
    """Give the anchors of a night.

    Args:
        model: the bare base, no adapter attached.
        tokenizer: gives the template.
        examples: what the night learns from.
        share: anchors for each of them under another preset; there are never more than shipped and own prompts.
        cache_dir: where the replies are kept.
        base_id: names the base.
        progress: told as replies are generated.
    """
    wanted = round(share * sum(not _under_plain(e) for e in examples))
    prompts = [encode_prompt(tokenizer, messages) for messages in anchor_messages(examples)]
    prompts = [prompt for prompt in prompts if len(prompt) <= PROMPT_TOKENS][:wanted]
    replies = cached_replies(
        model, prompts, end_of_turn(tokenizer), cache_dir / "anchors" / f"{base_id}.jsonl", progress
    )
    return [
        Encoded(f"anchor-{i}", tuple(prompt), (tuple(reply),), True, 1.0, f"anchor-{i}")
        for i, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
    ]


def anchor_messages(examples: Sequence[Example]) -> list[list[Message]]:
    """List plain conversations without repetition, shipped and own ones in turn."""
    shipped = [[Message(role="user", content=text)] for text in ANCHOR_PROMPTS.read_text(encoding="utf-8").splitlines()]
    spoken = [(_under_plain(e), [m for m in e.prompt if m["role"] != "system"]) for e in examples]
    decided = [turns for plainly, turns in spoken if plainly]
    own = [turns for plainly, turns in spoken if not plainly]
    in_turn = [turns for turns in chain(*zip_longest(shipped, own)) if turns is not None and turns not in decided]
    distinct = {json.dumps(turns): turns for turns in in_turn}
    return [[PLAIN_SYSTEM, *turns] for turns in distinct.values()]


def cached_replies(
    model: PreTrainedModel, prompts: Sequence[Ids], stop_id: int, path: Path, progress: Progress = silent
) -> list[Ids]:
    """Look the base's replies up, generate those that are missing, and keep these prompts' alone."""
    known: dict[str, Ids] = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            known[entry["key"]] = entry["reply"]
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill
    missing = {_key(prompt): prompt for prompt in prompts if _key(prompt) not in known}
    keys = sorted(missing, key=lambda key: len(missing[key]))
    path.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(keys), TOGETHER):
        part = keys[start : start + TOGETHER]
        made = dict(zip(part, generate_replies(model, [missing[key] for key in part], stop_id), strict=True))
        with path.open("a", encoding="utf-8") as file:  # the first newline ends a line that a kill tore
            file.write("\n" + "\n".join(json.dumps({"key": key, "reply": made[key]}) for key in part) + "\n")
        known |= made
        progress("anchors", start + len(part), len(keys))
    wanted = {_key(prompt) for prompt in prompts}
    if known.keys() - wanted:
        kept = path.with_suffix(".new")
        kept.write_text("".join(json.dumps({"key": key, "reply": known[key]}) + "\n" for key in sorted(wanted)))
        kept.replace(path)
    return [known[_key(prompt)] for prompt in prompts]


@torch.no_grad()
def generate_replies(model: PreTrainedModel, prompts: Sequence[Ids], stop_id: int) -> list[Ids]:
    """Sample a reply to each prompt, all in one batch padded on the left; one that ends holds its stop token."""
    width = max(map(len, prompts))
    ids = torch.tensor([[stop_id] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    generators = [torch.Generator().manual_seed(int(_key(prompt)[:8], 16)) for prompt in prompts]
    replies: list[Ids] = [[] for _ in prompts]
    past = None
    for _ in range(REPLY_TOKENS):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past = out.past_key_values
        for logits, reply, generator in zip(out.logits[:, -1].float().cpu(), replies, generators, strict=True):
            if stop_id not in reply[-1:]:
                reply.append(sample(logits, SAMPLING, generator))
        if all(reply[-1] == stop_id for reply in replies):
            break
        ids = torch.tensor([[reply[-1]] for reply in replies], device=model.device)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return replies


def _under_plain(example: Example) -> bool:
    return example.prompt[0] == PLAIN_SYSTEM


def _key(prompt: Sequence[int]) -> str:
    return hashlib.sha256(repr((tuple(prompt), SAMPLING)).encode()).hexdigest()[:32]
