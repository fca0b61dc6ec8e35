"""What the chat page shows at one moment. Knows neither how it comes about nor the components that show it."""

from dataclasses import dataclass

from feedback_store.records import Message


@dataclass(frozen=True)
class View:
    """What the chat page shows at one moment."""

    path: tuple[Message, ...] = ()
    votes: tuple[str | None, ...] = ()
    """One entry an assistant message: Like, Dislike or None."""
    busy: bool = False
    own: bool | None = False
    """Whether a stream of this very page shows it as it grows; None where that stays as it was."""
    notice: str = ""
    keep: str | None = None
    """Text for the message box; None leaves it as the person has it."""
    version: int = 1
    versions: int = 1
    shut_out: bool = False
    """Its reader was erased or disabled; nothing that is stored is shown any more."""
    gone: bool = False
    """Nobody looks at this any more; the page stays as it is."""

    @property
    def preset(self) -> str:
        """The preset of the last reply on screen, or nothing."""
        return next((message.origin.preset for message in reversed(self.path) if message.origin), "")

    @property
    def shown(self) -> str:
        """Id of the last message on screen, or nothing."""
        return self.path[-1].id if self.path else ""

    @property
    def conversation_id(self) -> str:
        """The conversation on screen, or nothing."""
        return self.path[-1].conversation_id if self.path else ""
