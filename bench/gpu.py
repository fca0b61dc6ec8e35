"""DPO against TRL on a GPU: python -m bench.gpu --rival-python PYTHON [--shapes 1B 8B] [--forms bf16 nf4] [--json]

The pairs and contenders of bench.training on Llamas of random weights in real shapes, held in bf16 or in bitsandbytes'
four bits: random weights are enough for speed and memory, and say nothing of quality. TRL takes a step's pairs as one
batch. Prints a Markdown table, or one JSON object. Needs a GPU and, for 8B, 30 GB of disk under --folder.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from assistant.arithmetic import best_device
from assistant.loading import Base, resolve_base
from assistant.settings import Settings
from bench.contenders import Bench, DidNotFinish, Result, choose, plan, train_ours, train_theirs, write_start
from bench.pairs import find_file, make_pairs, read_pairs
from bench.training import AGAIN, NIGHT, compare_losses

SHAPES = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
"""Of Llama 3.2 1B and Llama 3.1 8B, but for the vocabulary, which is the tokenizer's."""
LONGEST = 256


@dataclass(frozen=True)
class Measured:
    """One contender on one model."""

    shape: str
    form: str
    result: Result
    tokens_s: float
    """Tokens a second: of each pair the prompt twice and both replies, whoever computes the prompt once."""


def write_model(folder: Path, shape: str, form: str, tokenizer: Path) -> None:
    """Write a Llama of random weights, and a tokenizer with a chat template."""
    loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    config = LlamaConfig(
        **SHAPES[shape],
        num_key_value_heads=8,
        vocab_size=len(loaded),
        max_position_embeddings=8192,
        tie_word_embeddings=shape == "1B",
        bos_token_id=loaded.bos_token_id,
        eos_token_id=loaded.eos_token_id,
        pad_token_id=loaded.pad_token_id,
    )
    torch.manual_seed(0)
    with best_device():
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    if form == "nf4":
        del model
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        packed = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=four, device_map={"": best_device()}
        )
        shutil.rmtree(folder)
        packed.save_pretrained(folder)
    loaded.save_pretrained(folder)


def measure(shape: str, form: str, folder: Path, embedded: Base, args: argparse.Namespace) -> list[Measured]:
    """Let everybody train on one model."""
    model = folder / "model"
    write_model(model, shape, form, embedded.folder)
    base = resolve_base(Settings(home=folder, model=str(model)))
    file = find_file()
    pairs = choose(base, list(read_pairs(file)) if file else make_pairs(4 * args.pairs), args.pairs, LONGEST)
    night = NIGHT.model_copy(update={"batch_examples": args.batch})
    start = folder / "start.safetensors"
    write_start(base, night, start)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the contenders' processes want the memory
    bench = Bench(base, folder, args.rival_python, torch.get_num_threads(), start)
    work = plan(base, f"pairs-{shape}-{form}", pairs, night)
    tokens = sum(len(e.prompt) + len(c) for step in work.steps for e in step for c in e.completions)
    results = [train_ours(bench, work, night), train_ours(bench, work, night, AGAIN)]
    for tuned in (True, False):
        try:
            results.append(train_theirs(bench, work, night, args.batch, tuned=tuned))
        except DidNotFinish as error:
            sys.stderr.write(f"{error}\n")
    return [Measured(shape, form, r, tokens * r.per_s / len(pairs)) for r in compare_losses(results)]


def table(found: list[Measured]) -> list[str]:
    """Write the results in Markdown, each beside ours on the same model."""
    lines = [
        "| model | contender | pairs a second | tokens a second | peak GB | Nightschool is |",
        "|---|---|---|---|---|---|",
    ]
    first = {(m.shape, m.form): m.result.per_s for m in reversed(found)}
    for m in found:
        times = first[(m.shape, m.form)] / m.result.per_s
        lines.append(
            f"| {m.shape} {m.form} | {m.result.contender} | {m.result.per_s:.1f} | {m.tokens_s:,.0f} "
            f"| {m.result.peak_gb:.1f} | {times:.2f} × as fast |"
        )
    return lines


def main() -> None:
    """Measure what fits, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--forms", nargs="+", choices=["bf16", "nf4"], default=["bf16", "nf4"])
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="pairs of an optimiser step")
    parser.add_argument("--rival-python", type=Path, required=True, help="of an environment with TRL")
    parser.add_argument("--folder", type=Path, default=None, help="where the models go for the time of the bench")
    parser.add_argument("--home", type=Path, default=None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU. On a CPU run: python -m bench.training")
    embedded = resolve_base(Settings(home=args.home) if args.home else Settings())
    found: list[Measured] = []
    for shape in args.shapes:
        for form in args.forms:
            with tempfile.TemporaryDirectory(dir=args.folder) as name:
                found += measure(shape, form, Path(name), embedded, args)
            sys.stderr.write("\n".join(table(found)[-4:]) + "\n")
    told = [{**asdict(m), "result": asdict(replace(m.result, losses=m.result.losses[-1:]))} for m in found]
    gpu = torch.cuda.get_device_name()
    sys.stdout.write(
        (json.dumps({"gpu": gpu, "found": told}) if args.json else "\n".join([gpu, "", *table(found)])) + "\n"
    )


if __name__ == "__main__":
    main()
