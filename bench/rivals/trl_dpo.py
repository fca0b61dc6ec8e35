"""One DPO training with TRL, in TRL's own environment: python bench/rivals/trl_dpo.py JOB.json OUT.json

Imports nothing of the project. The job names a model's folder, the adapter to start from, and the pairs in the order
they are taken; the answer tells seconds from the loaded model to the trained adapter, peak memory, every step's loss
and learning rate, and the very tokens that TRL made of the pairs. `tuned` is TRL as somebody would set it who measures:
bf16 weights where the machine multiplies bf16 fast and float32 ones elsewhere, the reference computed once beforehand,
no gradient checkpointing; without it these are TRL's defaults.
`exact` computes in float32, for a comparison that rounding does not blur.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

TUNED = {"gradient_checkpointing": False, "precompute_ref_log_probs": True, "precompute_ref_batch_size": 32}


def configure(job: dict[str, Any], folder: str) -> DPOConfig:
    """Say to TRL what is equal for all, and what tuning is."""
    return DPOConfig(
        output_dir=folder,
        use_cpu=not torch.cuda.is_available(),
        bf16=not job["exact"] and (job["bf16_is_fast"] or not job["tuned"]),
        per_device_train_batch_size=job["batch"],
        gradient_accumulation_steps=job["accumulate"],
        num_train_epochs=1,
        beta=job["beta"],
        learning_rate=max(job["rates"]),
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **(TUNED if job["tuned"] else {}),
    )


def make_trainer(job: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> DPOTrainer:
    """Build the trainer with the given adapter and learning rates; a tuned one has its reference afterwards."""
    trainer = DPOTrainer(
        model,
        args=configure(job, job["folder"]),
        train_dataset=Dataset.from_list(job["pairs"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=job["rank"], lora_alpha=job["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    start = load_file(job["start"])
    assert start.keys() == get_peft_model_state_dict(trainer.model).keys(), "the same layers carry an adapter"
    set_peft_model_state_dict(trainer.model, start)
    rates = job["rates"]
    optimizer = trainer.create_optimizer()
    trainer.lr_scheduler = LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)] / max(rates))
    return trainer


def peak_gb() -> float:
    """Peak memory in GB: the GPU's where there is one, else the resident set's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train, write the adapter, and say how it went."""
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        job["model"],
        dtype=torch.bfloat16 if job["tuned"] and job["bf16_is_fast"] and not job["exact"] else torch.float32,
        device_map={"": 0} if torch.cuda.is_available() else None,
        local_files_only=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(job["model"], local_files_only=True)
    started = time.perf_counter()
    trainer = make_trainer(job, model, tokenizer)
    trainer.train()
    seconds = time.perf_counter() - started
    save_file(get_peft_model_state_dict(trainer.model), job["adapter"])
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    return {
        "seconds": seconds,
        "peak_gb": peak_gb(),
        "losses": [entry["loss"] for entry in steps],
        "rates": [entry["learning_rate"] for entry in steps],
        "rows": [[row[name] for name in columns] for row in trainer.train_dataset],
    }


def main() -> None:
    """Read the job, train, write the answer."""
    job, answer = (Path(name) for name in sys.argv[1:])
    answer.write_text(json.dumps(train(json.loads(job.read_text(encoding="utf-8")))), encoding="utf-8")


if __name__ == "__main__":
    main()
