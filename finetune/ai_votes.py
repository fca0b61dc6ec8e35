"""What AI judges said, as examples of a night: beside people's votes, never in their place.

They train and never examine: they are added after people's votes are divided, and left out where they would tell of
what is held out. Where somebody judged the same replies, the AI's choice is not used. A soft label s becomes the
weight |2s - 1| on the reply that is likelier better: near the base, where the loss is linear in the margin, its
gradient is that of s L(first) + (1 - s) L(second).
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from assistant.engine import Message
from assistant.settings import NightSettings
from feedback_store import Store
from feedback_store.ai import AiChoice, AiRewrite, ReplyPair
from feedback_store.ai import Reply as StoredReply
from finetune.collect import NightData, Votes, gather
from finetune.examples import Example, Method, content_key, data_hash, new_example, select_method
from finetune.raters import bound_ai
from finetune.split import leak_names


def add_ai_votes(
    data: NightData, votes: Votes, store: Store, limits: NightSettings, now: datetime, method: Method
) -> NightData:
    """Add what AI judges said to the part of a night that trains.

    Args:
        data: people's votes, divided.
        votes: people's votes, all of them.
        store: holds what the judges said.
        limits: ai_weight, ai_share, and the half-life.
        now: the moment that ages are counted from, UTC.
        method: what to learn from.

    Returns:
        The data with all AI votes together at no more than their share; as it was where that is 0.
    """
    if not (limits.ai_share and limits.ai_weight):
        return data
    judged = {_regardless_of_order(example) for example in votes.examples}
    said = [example for example in _stored(store) if _regardless_of_order(example) not in judged]
    gathered = gather(said, now=now, half_life_days=limits.half_life_days)
    sure = {example.said: example.weight for example in sorted(said, key=lambda e: e.created_at)}
    weighed = [replace(example, weight=example.weight * sure[example.said]) for example in gathered.examples]
    kept_apart = leak_names((*data.split.heldout, *data.split.aside))
    fit = [e for e in weighed if e.person not in data.split.people and leak_names([e]).isdisjoint(kept_apart)]
    people_weight = sum(example.weight for example in data.train)
    added = bound_ai(select_method(fit, method), people_weight, limits)
    train = (*data.train, *added)
    total = sum(example.weight for example in train)
    counts = data.counts | {
        "ai_votes": len(added),
        "ai_set_aside": len(weighed) - len(fit),
        "ai_percent_of_weight": round(100 * (total - people_weight) / total) if total else 0,
    }
    return replace(data, train=train, data_hash=data_hash(train, data.heldout), counts=counts)


def _stored(store: Store) -> Iterator[Example]:
    """Yield what may be learned from; the weight is how sure the judge was."""
    for choice in store.ai.choices():
        if choice.share != 0.5 and not choice.judged_by_people:
            better, worse = choice.pair.first, choice.pair.second
            ids = choice.pair.ids
            if choice.share < 0.5:
                better, worse, ids = worse, better, (ids[1], ids[0])
            yield _example(choice, choice.pair, (better, worse), ids, "ai-choice", abs(2 * choice.share - 1))
    for rewrite in store.ai.rewrites():
        reply = rewrite.reply
        for texts in ((rewrite.text, reply.text), (rewrite.text,)):
            yield _example(rewrite, reply, texts, (reply.id,), "ai-rewrite", 1.0)


def _regardless_of_order(example: Example) -> str:
    return content_key(example.prompt, sorted(example.completions))


def _example(
    said: AiChoice | AiRewrite,
    about: ReplyPair | StoredReply,
    completions: tuple[str, ...],
    ids: tuple[str, ...],
    source: str,
    weight: float,
) -> Example:
    """Make an example of the person in whose conversation it is: who is erased takes it along."""
    prompt = tuple(Message(role=turn["role"], content=turn["content"]) for turn in about.prompt)
    example = new_example(
        prompt,
        completions,
        demonstrated=len(completions) == 1,
        person=str(about.person_id),
        conversation=about.conversation_id,
        created_at=said.created_at,
        source=source,
        ids=ids,
    )
    return replace(example, weight=weight)
