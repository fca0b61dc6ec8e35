"""Decode and prompt speed of the served forms, side by side: python -m bench.forms [--runs 3]

Prints a Markdown table; docs/serving.md holds the last one. Each form is loaded as the app loads it.
"""

import argparse
import statistics
import sys
import time

import torch
from transformers import DynamicCache

from assistant.loading import ServedModel, load_served, resolve_base
from assistant.settings import load_settings

FORMS = ("int4", "none", "nf4", "int8")
STREAMS = (1, 2, 8, 32)
PROMPT, DECODE = 512, 32


def decode_tok_s(served: ServedModel, streams: int) -> float:
    """Tokens a second of `streams` rows decoding together after a prompt of 64 tokens."""
    model = served.model
    cache = DynamicCache(config=model.config)
    ids = torch.randint(5, 1000, (streams, 64))
    token = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1)
    start = time.perf_counter()
    for _ in range(DECODE):
        token = model(token[:, None], past_key_values=cache).logits[:, -1].argmax(-1)
    return streams * DECODE / (time.perf_counter() - start)


def prefill_tok_s(served: ServedModel) -> float:
    """Tokens a second of one prompt."""
    ids = torch.randint(5, 1000, (1, PROMPT))
    start = time.perf_counter()
    served.model(ids, logits_to_keep=1)
    return PROMPT / (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--home", default=None)
    args = parser.parse_args()
    settings = load_settings(args.home)
    base = resolve_base(settings)
    columns = "".join(f" decode, {n} at once |" for n in STREAMS)
    sys.stdout.write(f"| form | prompt of {PROMPT} |{columns}\n|---|---|{'---|' * len(STREAMS)}\n")
    for form in FORMS:
        served = load_served(base, settings.model_copy(update={"quantization": form}))
        with torch.inference_mode():
            decode_tok_s(served, 1)  # warm-up
            cells = [statistics.median(prefill_tok_s(served) for _ in range(args.runs))]
            cells += [statistics.median(decode_tok_s(served, n) for _ in range(args.runs)) for n in STREAMS]
        sys.stdout.write(f"| {served.numeric_form} |" + "".join(f" {cell:,.0f} |" for cell in cells) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
