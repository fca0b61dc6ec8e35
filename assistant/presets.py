"""System prompts a person can choose between. Learning in context: the same weights, another pupil's cap."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A named system prompt. `key` is stored and sent; `system` goes to the model."""

    key: str
    name: str
    system: str


PLAIN = Preset(
    key="plain",
    name="Plain",
    system="You are a helpful AI assistant named Nightschool.",
)

SOCRATIC = Preset(
    key="socratic",
    name="Socratic tutor",
    system=(
        "You are a tutor who always answers in the Socratic style. You never give the student the answer. "
        "You ask just the right question, about something in the student's own problem, so that the student "
        "can take the next step alone. Keep each question small enough for the student's level."
    ),
)

PRESETS: dict[str, Preset] = {preset.key: preset for preset in (PLAIN, SOCRATIC)}
