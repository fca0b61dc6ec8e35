"""How fast llama.cpp answers, in an environment of its own: python bench/rivals/llama_cpp_chat.py JOB.json OUT.json

Imports nothing of the project. The job names a GGUF file, threads, lengths and runs; with `requantize` the file's
weights are first written anew as Q4_0, the form that llama.cpp reads prompts fastest in. The answer holds the figures
that `python -m assistant bench` has for one chat, each the median of the runs. llama.cpp is called by its own C
interface with its greedy sampler, so that nothing of the Python binding's own chat is in the time.
"""

import ctypes
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as c

Q4_0 = c.LLAMA_FTYPE_MOSTLY_Q4_0


class Chat:
    """One context over one model."""

    def __init__(self, file: str, threads: int, room: int) -> None:
        model_params = c.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = c.llama_model_load_from_file(file.encode(), model_params)
        params = c.llama_context_default_params()
        params.n_ctx = room
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        self.context = c.llama_init_from_model(self.model, params)
        self.sampler = c.llama_sampler_init_greedy()
        if not self.model or not self.context:
            raise SystemExit(f"llama.cpp cannot load {file}.")

    def forget(self) -> None:
        """Begin anew."""
        c.llama_memory_clear(c.llama_get_memory(self.context), False)

    def read(self, tokens: list[int]) -> int:
        """Read tokens behind those known; returns the likeliest next one."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        if c.llama_decode(self.context, c.llama_batch_get_one(ids, len(tokens))):
            raise SystemExit("llama.cpp failed to read.")
        return int(c.llama_sampler_sample(self.sampler, self.context, -1))


def measure(chat: Chat, job: dict[str, Any], run: int) -> dict[str, float]:
    """Seconds and tokens a second of one round: a short prompt and its reply, then a long one and its reply."""
    draw = random.Random(run)
    figures = {}
    for kind in ("short", "long"):
        chat.forget()
        prompt = [draw.randrange(5, 1000) for _ in range(job[kind])]
        start = time.perf_counter()
        token = chat.read(prompt)
        read = time.perf_counter()
        for _ in range(job["reply"] - 1):
            token = chat.read([token])
        end = time.perf_counter()
        if kind == "short":
            figures["decode_tok_s"] = (job["reply"] - 1) / (end - read)
        else:
            figures["prefill_tok_s"] = job[kind] / (read - start)
            figures["answer_s"] = end - start
    return figures


def requantized(file: str) -> str:
    """Write a file's weights as Q4_0 beside where the answer goes; returns the new file."""
    to = str(Path(sys.argv[2]).with_suffix(".gguf"))
    params = c.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = Q4_0, True
    if c.llama_model_quantize(file.encode(), to.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp cannot write {file} as Q4_0.")
    return to


def main() -> None:
    """Measure as the job says."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    silent = c.llama_log_callback(lambda _level, _text, _data: None)
    c.llama_log_set(silent, ctypes.c_void_p(0))
    c.llama_backend_init()
    file = requantized(job["file"]) if job["requantize"] else job["file"]
    chat = Chat(file, job["threads"], job["long"] + job["reply"] + 64)
    measure(chat, job, -1)  # the first one pays for what is set up only once
    rounds = [measure(chat, job, run) for run in range(job["runs"])]
    answer: dict[str, Any] = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    answer["version"] = llama_cpp.__version__
    answer["build"] = c.llama_print_system_info().decode()
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
