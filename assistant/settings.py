"""One Settings object: NIGHTSCHOOL_* variables first, then settings.toml under the home, then defaults.

Nested groups are written NIGHTSCHOOL_NIGHT__MIN_VOTES=40, or in settings.toml as [night] min_votes = 40.
"""

import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import platformdirs
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from assistant.errors import SettingsError

Quantization = Literal["auto", "nf4", "int8", "int4", "none"]
PairLoss = Literal["dpo", "ipo", "robust", "norm"]
RankingLoss = Literal["pairs", "plackett-luce"]


class SamplingSettings(BaseModel):
    """How replies are drawn unless a request says otherwise."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    temperature: float = Field(0.7, ge=0, le=5)
    """0 is greedy."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Only the likeliest tokens that make up this probability are drawn from."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest reply, in tokens."""


class NightSettings(BaseModel):
    """What the nightly run trains with, and what a candidate must pass."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    min_votes: int = Field(30, ge=1)
    """Usable votes below which the night is skipped."""
    holdout_share: float = Field(0.2, gt=0, lt=1)
    """Part of the conversations (and people) kept for the examination."""
    half_life_days: float = Field(45.0, gt=0)
    """A vote this old weighs half."""
    largest_share: float = Field(0.25, gt=0, le=1)
    """The most of a night's weight that any one person has, where there are people enough for it."""
    quarantine_hours: float = Field(0.0, ge=0)
    """Votes younger than this wait for a later night, so that somebody can look at them first."""
    alike_prompts: float = Field(0.9, gt=0, le=1)
    """A person's votes on prompts at least so alike share the weight of one."""
    ai_weight: float = Field(0.5, ge=0, le=1)
    """What an AI judge's choice or rewrite weighs beside a person's vote."""
    ai_share: float = Field(0.3, ge=0, lt=1)
    """The most of a night's weight that all AI judges together have; 0 leaves them out."""
    rank: int = Field(16, ge=1, le=4096)
    """Rank of the LoRA adapter."""
    alpha: int = Field(32, ge=1)
    """The adapter is scaled by alpha / rank."""
    learning_rate: float = Field(3e-4, gt=0)
    """Highest learning rate."""
    epochs: int = Field(1, ge=1)
    """How often each choice, ranking and thumb is seen; the second time its slips are learned by heart."""
    sure_epochs: int = Field(2, ge=1)
    """How often what is sure is seen, if that is more: demonstrations, rewrites, anchors, choices without doubt."""
    pair_loss: PairLoss = "dpo"
    """What pairs and the pairs of rankings are learned with: `dpo`, `ipo`, `robust` or `norm` (length-normalised)."""
    ranking_loss: RankingLoss = "pairs"
    """`pairs`: the mean of a ranking's pairs, each with pair_loss. `plackett-luce`: the order as a whole."""
    beta: float = Field(0.1, gt=0)
    """How strongly DPO, KTO and Plackett-Luce hold on to the base."""
    norm_beta: float = Field(5.0, gt=0)
    """The same for length-normalised DPO, whose margins are a token's."""
    ipo_tau: float = Field(1.0, gt=0)
    """IPO draws the margin a token to 1 / (2 ipo_tau)."""
    label_smoothing: float = Field(0.05, ge=0, lt=0.5)
    """Probability that a choice was a slip (dpo, robust, norm); the least one where find_slips finds others."""
    find_slips: bool = True
    """Whether two reward models say how probable it is that a choice was a slip (dpo, norm)."""
    dpo_weight: float = Field(0.5, ge=0)
    """Weight of the preference loss of a pair or ranking."""
    nll_weight: float = Field(0.1, ge=0)
    """Weight of the token-mean NLL of the chosen reply of a pair, and of the best of a ranking."""
    kto_weight: float = Field(1.0, ge=0)
    """Weight of the loss of a thumb (KTO)."""
    reward_learning_rate: float = Field(3e-4, gt=0)
    """Highest learning rate of a reward model."""
    reward_epochs: int = Field(1, ge=1)
    """How often a reward model sees each pair and ranking; it overfits soon."""
    ppo_iterations: int = Field(30, ge=1)
    """How often PPO samples replies and learns from them."""
    ppo_prompts: int = Field(64, ge=1)
    """Replies sampled in one iteration, as many whole groups as fit, one at least."""
    ppo_group: int = Field(4, ge=1)
    """Replies to one prompt, each held against the others (RLOO); 1 holds it against a learned value (classic PPO)."""
    ppo_reply_tokens: int = Field(64, ge=1)
    """Longest reply that PPO samples, in tokens."""
    ppo_epochs: int = Field(1, ge=1)
    """How often an iteration learns from each of its replies."""
    ppo_learning_rate: float = Field(5e-4, gt=0)
    """Learning rate of policy and value."""
    ppo_beta: float = Field(0.4, ge=0)
    """Least price of a nat away from the reference, in standard deviations of the reward."""
    ppo_kl_limit: float = Field(0.1, gt=0)
    """Nats a token away from the reference beyond which PPO goes back; three quarters of it are aimed at."""
    ppo_cut_penalty: float = Field(1.0, ge=0)
    """What a reply cut at its token limit loses, in standard deviations of the reward."""
    ppo_shared_prompts: bool = False
    """Whether a night's PPO may reply to prompts that its SFT and reward model learned from, too."""
    ppo_ptx_weight: float = Field(0.2, ge=0)
    """Weight of the NLL of demonstrations, anchors or texts beside PPO's loss (PPO-ptx)."""
    anchor_share: float = Field(0.6, ge=0, le=100)
    """Anchors for each example under another preset than the plain one: the base's own plain replies, which stay."""
    batch_examples: int = Field(8, ge=1)
    """Examples in one optimiser step."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Longer gradients are shortened to this norm."""
    max_tokens: int = Field(1024, ge=64)
    """Longest prompt plus completion trained on; older turns are left out first."""
    gate_accuracy_margin: float = Field(0.02, ge=0)
    """The paired 90 % lower bound of held-out accuracy against the live adapter must lie above minus this."""
    gate_perplexity_rise: float = Field(0.02, ge=0)
    """Largest relative rise of perplexity on the shipped text."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the split and the training."""


def _network(address: str) -> str:
    """Check that this names addresses: what nobody comes from would be believed of nobody, unnoticed."""
    try:
        ipaddress.ip_network(address, strict=False)
    except ValueError:
        raise ValueError(f"{address!r} is no address or network, such as 127.0.0.1 or 10.0.0.0/8") from None
    return address


def _with_port(url: str) -> str:
    """Check that the port, where an address names one, is one."""
    try:
        port = urlsplit(url).port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError(f"{url!r} names a port that is none; ports go from 1 to 65535")
    return url


class DoorSettings(BaseModel):
    """Who may reach the web app, and how often. The owner of an app without accounts is held to none of the limits."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    public_url: Annotated[str, AfterValidator(_with_port)] = Field(
        "", pattern=r"^(https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?/?)?$"
    )
    """The address that people open when a proxy stands before the app: scheme and host, no path."""
    trusted_proxies: list[Annotated[str, AfterValidator(_network)]] = []
    """Addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed; nobody else's are."""
    trusted_hosts: list[str] = []
    """Further host names that people may open the app by."""
    logins_per_account: int = Field(5, ge=1)
    """Wrong passwords a minute for one account from one address."""
    logins_per_address: int = Field(30, ge=1)
    """Wrong passwords a minute from one address."""
    events_per_minute: int = Field(300, ge=1)
    """Messages, votes and other actions of one account."""
    requests_at_once: int = Field(100, ge=1)
    """Requests under way, held streams among them, for one account, or for one address that is not logged in."""
    api_teaches: bool = False
    """Whether conversations over /v1 may teach where their person's chats do: the turns in them are the caller's."""
    generations_per_account: int = Field(2, ge=1)
    """Replies of one account under way: one is being written, the others wait for it."""


class ServerSettings(BaseModel):
    """The server that answers when `engine` is an address."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    model: str = ""
    """What the server calls the base model; empty asks the server, which must then offer exactly one."""
    api_key: SecretStr = SecretStr("")
    """Sent to the server and nowhere else; never shown, logged or stored."""
    silence_s: float = Field(120.0, gt=0)
    """Longest wait for the first token, and between two."""
    deadline_s: float = Field(600.0, gt=0)
    """Longest time for one reply, waiting included."""
    at_once: int = Field(64, ge=1)
    """Requests under way together; others wait here."""
    loads_adapters: bool = False
    """Load what goes live on the server first, by vLLM's routes for adapters, and see it answer."""
    adapters_dir: str = ""
    """Where the server sees the home's folder of adapters; empty is the same path as here."""

    @field_validator("api_key")
    @classmethod
    def _can_be_sent(cls, key: SecretStr) -> SecretStr:
        said = key.get_secret_value().strip()
        if not (said.isascii() and said.isprintable()):
            raise ValueError("a key has printable ASCII characters only")
        return SecretStr(said)


class ServingSettings(BaseModel):
    """How the local engine serves many at once."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    at_once: int = Field(32, ge=1)
    """Replies written together, as rows of one batch; others wait."""
    prefix_cache_mb: int = Field(512, ge=0)
    """Memory for conversations read lately, so that the next turn computes only what is new."""
    deadline_s: float = Field(600.0, gt=0)
    """Longest time for writing one reply."""
    own_products: bool = True
    """Compile the project's own products of 4-bit weights, where there is a C++ compiler, and take them if faster."""


class Settings(BaseSettings):
    """Everything configurable, and the folders under the home."""

    model_config = SettingsConfigDict(
        env_prefix="NIGHTSCHOOL_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )
    home: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("nightschool", appauthor=False)))
    """The folder that holds everything."""
    model: str = "embedded"
    """`embedded`, a hub id, a folder, or a .gguf file."""
    engine: str = "local"
    """`local`, `fake`, or the base URL of an OpenAI-compatible server."""
    quantization: Quantization = "auto"
    """`auto`, `nf4`, `int8`, `int4` or `none`: how the model's weights are held while it answers."""
    threads: int = Field(0, ge=0)
    """CPU threads for the model; 0 leaves it to torch."""
    context_tokens: int = Field(2048, ge=256)
    """Prompt plus reply, in tokens; never more than the model's own limit."""
    max_message_chars: int = Field(20_000, ge=1)
    """Longest message that a person may send."""
    queue_limit: int = Field(64, ge=1)
    """Questions, or replies of a server, that may wait to begin; with so many, people are told to come back."""
    cache: Path | None = None
    """Where converted models and reference log-probabilities are kept; None is `cache` under the home."""
    sampling: SamplingSettings = SamplingSettings()
    """How replies are drawn."""
    night: NightSettings = NightSettings()
    """What a night does."""
    door: DoorSettings = DoorSettings()
    """Who comes in."""
    serving: ServingSettings = ServingSettings()
    """How the local engine answers many at once."""
    server: ServerSettings = ServerSettings()
    """The server that answers, if one does."""

    @property
    def database_path(self) -> Path:
        """The one SQLite file."""
        return self.home / "nightschool.db"

    @property
    def adapters_dir(self) -> Path:
        """One immutable folder an adapter."""
        return self.home / "adapters"

    @property
    def runs_dir(self) -> Path:
        """One folder a night; the app only reads it."""
        return self.home / "runs"

    @property
    def cache_dir(self) -> Path:
        """What can be computed again: converted models, reference log-probabilities."""
        return self.cache or self.own_cache_dir

    @property
    def own_cache_dir(self) -> Path:
        """What can be computed again from what people of this home wrote; several homes may share the other one."""
        return self.home / "cache"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence: arguments, environment, settings.toml."""
        home = init_settings().get("home") or os.environ.get("NIGHTSCHOOL_HOME")  # empty is unset
        toml = Path(home or platformdirs.user_data_dir("nightschool", appauthor=False)) / "settings.toml"
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=toml)


class Described(NamedTuple):
    """One setting, as a person looks it up."""

    variable: str
    value: Any
    default: Any
    meaning: str


def describe(settings: BaseModel, prefix: str = "NIGHTSCHOOL_") -> Iterator[Described]:
    """Yield every setting by its environment variable, groups opened, with the value that holds."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        variable = prefix + name.upper()
        if isinstance(value, BaseModel):
            yield from describe(value, f"{variable}__")
        else:
            yield Described(variable, value, field.get_default(call_default_factory=True), field.description or "")


def load_settings(home: Path | str | None = None) -> Settings:
    """Read the settings of one home folder.

    Args:
        home: the folder; None takes NIGHTSCHOOL_HOME, else the platform's user-data folder.

    Raises:
        SettingsError: a value cannot be used; names the first one, so that a typo never
            silently falls back to a default.
    """
    known = set(Settings.model_fields) | {"test_cache", "test_data"}
    for name in (name.removeprefix("NIGHTSCHOOL_") for name in os.environ if name.startswith("NIGHTSCHOOL_")):
        if name.split("__")[0].lower() not in known:
            raise SettingsError(
                f"There is no setting NIGHTSCHOOL_{name}. Correct its name; `python -m assistant settings` lists them."
            )
    try:
        return Settings(home=Path(home).expanduser().absolute()) if home else Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SettingsError(
                f"There is no setting {name}. Correct its name in the environment or settings.toml;"
                " `python -m assistant settings` lists them."
            ) from error
        raise SettingsError(
            f"The setting {name} is wrong: {first['msg']}. Correct it in the environment or settings.toml."
        ) from error
    except ValueError as error:  # settings.toml is not TOML
        raise SettingsError(f"settings.toml cannot be read: {error}. Correct or remove it.") from error
