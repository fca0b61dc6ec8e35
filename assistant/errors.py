"""What can go wrong between a question and its answer.

AssistantError            every message is one sentence a person can act on
├── SettingsError         a variable or settings.toml is wrong       (operator)
├── ModelUnavailable      the weights cannot be had                  (operator)
├── PromptTooLong         one message does not fit the context       (the person who chats)
├── EngineBusy            the queue is full                          (the person who chats)
├── GenerationFailed      the model thread met an error              (the person who chats)
└── AdapterError          an adapter may not be used                 (operator)
    ├── AdapterMissing
    ├── AdapterDamaged
    └── AdapterForOtherBase
"""


class AssistantError(Exception):
    """Root of the family."""


class SettingsError(AssistantError):
    """A variable or settings.toml holds something that cannot be used."""


class ModelUnavailable(AssistantError):
    """The weights cannot be had from where the settings point."""


class KernelsUnavailable(AssistantError):
    """This machine cannot compile the project's own products, or not run them; torch's are taken."""


class PromptTooLong(AssistantError):
    """The newest message alone is larger than the model's context."""


class EngineBusy(AssistantError):
    """Too many replies are waiting already."""


class GenerationFailed(AssistantError):
    """A reply ended in an error; the engine lives on."""


class AdapterError(AssistantError):
    """An adapter may not be used."""


class AdapterMissing(AdapterError):
    """No adapter of that name exists."""


class AdapterDamaged(AdapterError):
    """A file is absent, altered, or holds what an adapter must not hold."""


class AdapterNotServed(AdapterError):
    """The server that answers did not load it, or does not answer under it."""


class AdapterForOtherBase(AdapterError):
    """The adapter was trained on another model."""
