"""One Settings object: NIGHTSCHOOL_* variables first, then settings.toml under the home, then defaults.

Nested groups are written NIGHTSCHOOL_NIGHT__MIN_VOTES=40, or in settings.toml as [night] min_votes = 40.
"""

import os
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from assistant.errors import SettingsError

Quantization = Literal["auto", "nf4", "int8", "int4", "none"]


class SamplingSettings(BaseModel):
    """How replies are drawn unless a request says otherwise."""

    model_config = ConfigDict(extra="forbid")
    temperature: float = Field(0.7, ge=0, le=5)
    """0 is greedy."""
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: int = Field(512, ge=1)


class NightSettings(BaseModel):
    """What the nightly run trains with, and what a candidate must pass."""

    model_config = ConfigDict(extra="forbid")
    min_votes: int = Field(30, ge=1)
    """Usable votes below which the night is skipped."""
    holdout_share: float = Field(0.2, gt=0, lt=1)
    """Part of the conversations (and people) kept for the examination."""
    half_life_days: float = Field(45.0, gt=0)
    """A vote this old weighs half."""
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    epochs: int = Field(2, ge=1)
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.05, ge=0, lt=0.5)
    """Probability that a choice was a slip (cDPO)."""
    dpo_weight: float = Field(0.5, ge=0)
    """Weight of the preference loss."""
    nll_weight: float = Field(0.2, ge=0)
    """Weight of the token-mean NLL of the chosen reply of a pair."""
    anchor_share: float = Field(0.6, ge=0)
    """Anchors for each example: the base's own plain replies, so that what nobody voted on stays as it was."""
    batch_examples: int = Field(8, ge=1)
    """Examples in one optimiser step."""
    max_grad_norm: float = Field(1.0, gt=0)
    max_tokens: int = Field(1024, ge=64)
    """Longest prompt plus completion trained on; older turns are left out first."""
    gate_accuracy_margin: float = Field(0.02, ge=0)
    """The paired 90 % lower bound of held-out accuracy against the live adapter must lie above minus this."""
    gate_perplexity_rise: float = Field(0.02, ge=0)
    """Largest relative rise of perplexity on the shipped text."""
    seed: int = 0


class Settings(BaseSettings):
    """Everything configurable, and the folders under the home."""

    model_config = SettingsConfigDict(
        env_prefix="NIGHTSCHOOL_", env_nested_delimiter="__", env_ignore_empty=True, extra="forbid"
    )
    home: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("nightschool", appauthor=False)))
    model: str = "embedded"
    """`embedded`, a hub id, a folder, or a .gguf file."""
    engine: str = "local"
    """`local`, `fake`, or the base URL of an OpenAI-compatible server."""
    quantization: Quantization = "auto"
    threads: int = Field(0, ge=0)
    """CPU threads for the model; 0 leaves it to torch."""
    context_tokens: int = Field(2048, ge=256)
    """Prompt plus reply, in tokens; never more than the model's own limit."""
    max_message_chars: int = Field(20_000, ge=1)
    queue_limit: int = Field(32, ge=1)
    """Replies under way or waiting before people are told to come back."""
    cache: Path | None = None
    """Where converted models and reference log-probabilities are kept; None is `cache` under the home."""
    sampling: SamplingSettings = SamplingSettings()
    night: NightSettings = NightSettings()

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
        return self.cache or self.home / "cache"

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


def load_settings(home: Path | str | None = None) -> Settings:
    """Read the settings of one home folder.

    Args:
        home: the folder; None takes NIGHTSCHOOL_HOME, else the platform's user-data folder.

    Raises:
        SettingsError: a value cannot be used; names the first one, so that a typo never
            silently falls back to a default.
    """
    known = set(Settings.model_fields) | {"test_cache"}
    for name in (name.removeprefix("NIGHTSCHOOL_") for name in os.environ if name.startswith("NIGHTSCHOOL_")):
        if name.split("__")[0].lower() not in known:
            raise SettingsError(
                f"There is no setting NIGHTSCHOOL_{name}. Correct its name; docs/operating.md lists them."
            )
    try:
        return Settings(home=Path(home).expanduser().absolute()) if home else Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SettingsError(
                f"There is no setting {name}. Correct its name in the environment or settings.toml;"
                " docs/operating.md lists them."
            ) from error
        raise SettingsError(
            f"The setting {name} is wrong: {first['msg']}. Correct it in the environment or settings.toml."
        ) from error
    except ValueError as error:  # settings.toml is not TOML
        raise SettingsError(f"settings.toml cannot be read: {error}. Correct or remove it.") from error
