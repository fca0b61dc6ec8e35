"""A scripted engine with the real engine's promise, for tests and for work on the page.

Its replies are a pure function of the request, so that a test knows what must appear.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from assistant.engine import Engine, Message, Pulse, Reply, Request, until_stop
from assistant.errors import AdapterError, GenerationFailed, PromptTooLong


def echo_script(request: Request) -> str:
    """Answer with the last message, the adapter and the seed."""
    last: Message = request.messages[-1]
    return f"You said: {last['content']} ({request.adapter or 'base'}, seed {request.sampling.seed})"


class FakeEngine:
    """Replies word by word from a script.

    Args:
        script: request -> whole reply; raise an AssistantError subclass or any exception to plant a fault.
        seconds_per_word: pause before each word; 0 is as fast as it goes.
        known_adapters: when given, any other adapter is refused.
        max_chars: longest last message taken.
    """

    base_id = "fake"
    numeric_form = "script"

    def __init__(
        self,
        script: Callable[[Request], str] = echo_script,
        seconds_per_word: float = 0.0,
        known_adapters: set[str] | None = None,
        max_chars: int = 20_000,
    ) -> None:
        self.script = script
        self.seconds_per_word = seconds_per_word
        self.known_adapters = known_adapters
        self.max_chars = max_chars
        self.pulse = Pulse()
        self._running: set[Reply] = set()

    def submit(self, requests: Sequence[Request]) -> list[Reply]:
        """Start the scripted replies, each in a thread of its own."""
        for request in requests:
            if self.known_adapters is not None and request.adapter and request.adapter not in self.known_adapters:
                raise AdapterError(f"There is no adapter {request.adapter}.")
            if len(request.messages[-1]["content"]) > self.max_chars:
                raise PromptTooLong("The message is longer than the model's context. Shorten it and send it again.")
        replies = [Reply(self.pulse) for _ in requests]
        self._running.update(replies)
        for request, reply in zip(requests, replies, strict=True):
            threading.Thread(target=self._speak, args=(request, reply), daemon=True).start()
        return replies

    def counters(self) -> Mapping[str, int]:
        """None."""
        return {}

    def close(self) -> None:
        """Cancel what is under way."""
        for reply in list(self._running):
            reply.cancel()

    def _speak(self, request: Request, reply: Reply) -> None:
        try:
            words = until_stop(self.script(request), request.sampling.stop)[0].split(" ")
            for i, word in enumerate(words[: request.sampling.max_new_tokens]):
                time.sleep(self.seconds_per_word)
                if reply.cancelled:
                    return reply.end("cancelled")
                reply.grow(word if i == 0 else f" {word}")
            reply.end("stop" if len(words) <= request.sampling.max_new_tokens else "length")
        except PromptTooLong as error:
            reply.refuse(error)
        except GenerationFailed as error:
            reply.end("failed", str(error))
        except Exception as error:  # the edge of the engine's thread: the reply must end
            reply.end("failed", f"The reply failed: {error}")
        finally:
            self._running.discard(reply)


_promise: Callable[..., Engine] = FakeEngine
