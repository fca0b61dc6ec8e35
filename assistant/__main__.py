"""Commands of the assistant room: ask, chat, batch, bench, settings.

Exit status: 0 done, 1 failed with one sentence, 2 wrong usage. With --json, one JSON object on standard output.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from assistant.adapters import read_adapter_id
from assistant.build import build_engine
from assistant.console import fail
from assistant.engine import MOST_SEED, Message, Reply, Request, Sampling
from assistant.errors import AssistantError, SettingsError
from assistant.live import live_adapter
from assistant.presets import PRESETS
from assistant.settings import Settings, describe, load_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = _parser().parse_args(argv)
    try:
        settings = load_settings(args.home)
        status: int = args.run(args, settings)
        return status
    except AssistantError as error:
        return fail(str(error), args.json)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1


def ask(args: argparse.Namespace, settings: Settings) -> int:
    """Answer one message, streamed as it is written."""
    messages = [*_system(args.preset), _user(args.text, settings)]
    adapter, folder = _adapter(args.adapter, settings)
    request = Request(messages, _sampling(args, settings), adapter)
    engine = build_engine(settings, folder)
    try:
        reply = engine.submit([request])[0]
        _stream(reply, silent=args.json)
    finally:
        engine.close()
    if args.json:
        fields = {
            "reply": reply.text,
            "adapter": request.adapter,
            "new_tokens": reply.new_tokens,
            "finish": reply.finish,
        }
        sys.stdout.write(json.dumps(fields) + "\n")
    return 0


def chat(args: argparse.Namespace, settings: Settings) -> int:
    """Hold a conversation in the terminal; the end of input ends it."""
    folder = _adapter(args.adapter, settings)[1]
    engine = build_engine(settings, folder)
    messages: list[Message] = _system(args.preset)
    said: list[Message] = []
    try:
        for text in _typed_lines(silent=args.json):
            messages.append(_user(text, settings))
            sampling = replace(_sampling(args, settings), seed=args.seed + len(messages))
            reply = engine.submit([Request(messages, sampling, _adapter(args.adapter, settings)[0])])[0]
            _stream(reply, silent=args.json)
            if reply.dropped_turns and not args.json:
                sys.stdout.write(f"({reply.dropped_turns} earlier turns no longer fit and were left out.)\n")
            messages.append({"role": "assistant", "content": reply.text})
            said = messages
    finally:
        engine.close()
    if args.json:
        sys.stdout.write(json.dumps({"messages": said}) + "\n")
    return 0


def batch(args: argparse.Namespace, settings: Settings) -> int:
    """Answer every line of a file, in order, and write the output whole or not at all."""
    conversations = list(_read_conversations(Path(args.input)))
    adapter, folder = _adapter(args.adapter, settings)
    requests = [
        Request(
            [*_preset_for(messages, args.preset), *messages],
            replace(_sampling(args, settings), seed=args.seed + i),
            adapter,
        )
        for i, messages in enumerate(conversations)
    ]
    engine = build_engine(settings, folder)
    try:
        replies = engine.submit(requests)
        for done, reply in enumerate(replies, start=1):
            reply.wait()
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{done} of {len(replies)} answered")
    finally:
        engine.close()
    _write_lines(
        Path(args.output),
        [
            {"messages": messages, "reply": reply.text, "adapter": adapter, "new_tokens": reply.new_tokens}
            for messages, reply in zip(conversations, replies, strict=True)
        ],
    )
    if args.json:
        fields = {"lines": len(replies), "adapter": adapter, "new_tokens": sum(r.new_tokens for r in replies)}
        sys.stdout.write(json.dumps(fields) + "\n")
    return 0


def bench(args: argparse.Namespace, settings: Settings) -> int:
    """Measure how fast this machine answers, for the base and with an adapter."""
    from assistant.bench import measure, table

    def tell(what: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[Kmeasuring {what}")

    found = measure(settings, args.runs, tell)
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    sys.stdout.write((json.dumps(found) if args.json else table(found)) + "\n")
    return 0


def show_settings(args: argparse.Namespace, settings: Settings) -> int:
    """List every setting with the value that holds here."""
    described = list(describe(settings))
    if args.json:
        sys.stdout.write(json.dumps({one.variable: one.value for one in described}, default=str) + "\n")
        return 0
    for one in described:
        changed = "" if one.value == one.default else f"  (else {one.default})"
        sys.stdout.write(f"{one.variable}={one.value}{changed}\n    {one.meaning}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m assistant", description="Ask the model without the app.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("ask", help="one answer, streamed")
    one.add_argument("text")
    one.set_defaults(run=ask)
    conversation = commands.add_parser("chat", help="a conversation in the terminal, until Ctrl-D")
    conversation.set_defaults(run=chat)
    many = commands.add_parser("batch", help='lines {"messages": […]} in, the same lines with "reply" out')
    many.add_argument("input", metavar="IN.jsonl")
    many.add_argument("output", metavar="OUT.jsonl")
    many.set_defaults(run=batch)
    for command in (one, conversation, many):
        default = None if command is many else "plain"
        command.add_argument("--preset", choices=sorted(PRESETS), default=default, help="system prompt")
        command.add_argument("--adapter", default="live", help="an adapter id, a folder, live (default) or base")
        command.add_argument("--max-new-tokens", type=_positive, default=None, help="longest reply, in tokens")
        command.add_argument("--greedy", action="store_true", help="the most likely token each time")
        command.add_argument("--seed", type=_seed, default=0, help="a whole number that fixes what is drawn")
    measured = commands.add_parser("bench", help="how fast this machine answers")
    measured.add_argument("--runs", type=_positive, default=3, help="of each figure; the median counts")
    measured.set_defaults(run=bench)
    listed = commands.add_parser("settings", help="every setting, its value here and what it means")
    listed.set_defaults(run=show_settings)
    for command in (one, conversation, many, measured, listed):
        command.add_argument("--home", default=None, help="the home folder")
        command.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    try:
        seed = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number") from None
    if abs(seed) > MOST_SEED:
        raise argparse.ArgumentTypeError(f"{text} is too large; give a number of at most 18 digits")
    return seed


def _adapter(name: str, settings: Settings) -> tuple[str | None, Path | None]:
    """Return an adapter's id, and its folder where that is not the home's."""
    if name == "base":
        return None, None
    if name == "live":
        return live_adapter(settings.database_path), None
    known = os.path.basename(name) == name and os.path.isdir(settings.adapters_dir / name)
    if os.path.isdir(name) and not known:  # a name of any length is no error here
        return read_adapter_id(Path(name)), Path(name)
    return name, None


def _sampling(args: argparse.Namespace, settings: Settings) -> Sampling:
    defaults = settings.sampling
    return Sampling(
        temperature=0.0 if args.greedy else defaults.temperature,
        top_p=defaults.top_p,
        max_new_tokens=args.max_new_tokens or defaults.max_new_tokens,
        seed=args.seed,
    )


def _system(preset: str | None) -> list[Message]:
    return [{"role": "system", "content": PRESETS[preset].system}] if preset else []


def _preset_for(messages: Sequence[Message], preset: str | None) -> list[Message]:
    return [] if messages[0]["role"] == "system" else _system(preset)


def _user(text: str, settings: Settings) -> Message:
    if not text.strip():
        raise AssistantError("The message is empty. Write something to answer.")
    if len(text) > settings.max_message_chars:
        raise AssistantError(
            f"The message has {len(text):,} characters; at most {settings.max_message_chars:,} are taken. Shorten it."
        )
    return {"role": "user", "content": text}


def _stream(reply: Reply, silent: bool) -> None:
    for piece in reply.pieces():
        if not silent:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if not silent:
        sys.stdout.write("\n")
        if reply.finish == "length":
            sys.stderr.write("(The reply was cut off at its longest; --max-new-tokens allows more.)\n")


def _typed_lines(silent: bool) -> Iterator[str]:
    while True:
        if sys.stdin.isatty() and not silent:
            sys.stdout.write("> ")
            sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _read_conversations(path: Path) -> Iterator[list[Message]]:
    """Read and check every line before any is answered."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AssistantError(
            f"{path} cannot be read as UTF-8 text ({type(error).__name__}). Check the path."
        ) from error
    for number, line in enumerate(lines, start=1):
        try:
            messages = [{"role": m["role"], "content": m["content"]} for m in json.loads(line)["messages"]]
            if not all(isinstance(text, str) for message in messages for text in message.values()):
                raise TypeError("role and content are texts")
        except (ValueError, KeyError, TypeError) as error:
            raise AssistantError(
                f'{path}, line {number}: not of the form {{"messages": [{{"role", "content"}}, …]}}.'
            ) from error
        if not messages or messages[-1]["role"] != "user":
            raise AssistantError(f"{path}, line {number}: the last message must be the user's.")
        if {m["role"] for m in messages} - {"system", "user", "assistant"}:
            raise AssistantError(f"{path}, line {number}: a role is none of system, user, assistant.")
        yield [Message(role=m["role"], content=m["content"]) for m in messages]
    if not lines:
        raise AssistantError(f"{path} is empty. Give it one conversation a line.")


def _write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.absolute().parent, delete=False) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(file.name).replace(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({type(error).__name__}). Choose another place.") from error


if __name__ == "__main__":
    sys.exit(main())
