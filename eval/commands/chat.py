"""`zoo chat`: a conversation with a model, on a terminal or with one message a line from a pipe."""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from eval.commands import terminal_output
from eval.commands.generate import resolve_decoding, with_typed_stops
from eval.commands.model_options import ModelOptions
from eval.generation.conversation import ChatModel, check_streams, without_first_space
from eval.generation.folder_settings import make_generator
from eval.generation.generation_options import Decoding
from eval.generation.generator import Generated, Part
from train.data.example_types import ASSISTANT, Dialogue, Message
from train.data.text_files import check_string
from train.run.run_dir import replace_atomically
from train.tokenizers.chat_token_ids import check_contents
from zoo.errors import BadInput, cannot_write, printable

HELP = """\
/reset        forget the conversation; the system message stays
/system TEXT  set the system message, without TEXT remove it
/save FILE    write the conversation as a line of JSON, as `zoo train sft --data.paths FILE` reads it
/help         show this list
/quit         end (also Ctrl-D); Ctrl-C ends a reply
A message that begins with / is written with a second one: //usr.
"""
PROMPT = "> "


def run_chat(model: ModelOptions, decoding: Decoding, *, template: str = "", explicit: Collection[str] = ()) -> int:
    """Answer the messages of a user until the input ends; return the exit code.

    Without a terminal, each line is a message or a command, only the answers are written to stdout, and a line that is refused
    ends the command.

    Args:
        template: a chat template, "builtin", or "" for the model's own.
        explicit: names of the settings that were given; the model's folder may set the others.

    Raises:
        BadInput: see `train.weights.load.load_model` and `ChatModel.of`; without a terminal also a line that is refused.
    """
    decoding = with_typed_stops(decoding)
    decoding = resolve_decoding(model, decoding, {*explicit, *(("stop",) if decoding.stop else ())})
    check_streams(decoding)
    loaded = model.load()
    generator = make_generator(loaded, dtype=model.dtype(), batch=1, shared=True)
    chat = Chat(ChatModel.of(loaded, generator, template), decoding)
    if sys.stdin.isatty() and sys.stdout.isatty():
        terminal_output.write_output(f"{loaded.name}: /help lists commands; Ctrl-C ends a reply, Ctrl-D the conversation.\n")
        return _talk_on_terminal(chat)
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"standard input, line {number}: not UTF-8 ({error.reason}); convert it") from None
        if not chat.take_line(text, lambda: False):
            break
    return 0


def _talk_on_terminal(chat: "Chat") -> int:
    with contextlib.suppress(ImportError):
        # Its import gives `input` the editing of lines and their history.
        import readline  # noqa: F401
    with _recorded_interrupts() as pressed:
        while True:
            try:
                line = _read_line()
            except EOFError:
                terminal_output.write_output("\n")
                return 0
            except KeyboardInterrupt:
                terminal_output.write_output("\n")
                notice("Ctrl-D or /quit ends the conversation")
                continue
            except UnicodeDecodeError:
                notice("the line is not UTF-8; write it again")
                continue
            pressed.clear()
            try:
                if not chat.take_line(line, lambda: bool(pressed)):
                    return 0
            except BadInput as error:
                notice(str(error))


@contextlib.contextmanager
def _recorded_interrupts() -> Iterator[list[int]]:
    """Return a list to which Ctrl-C adds an entry in this context, where it has no other effect."""
    pressed: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def _read_line() -> str:
    """Return a line that the user writes; Ctrl-C raises KeyboardInterrupt here."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input(PROMPT)
    finally:
        signal.signal(signal.SIGINT, previous)


def notice(text: str) -> None:
    """Print a line about the conversation on stderr."""
    sys.stdout.flush()
    print(f"! {printable(text)}", file=sys.stderr, flush=True)


class Chat:
    """A conversation: its messages so far, and what the lines of the user do."""

    def __init__(self, model: ChatModel, decoding: Decoding) -> None:
        self._model, self._decoding = model, decoding
        self._system = ""
        self._turns: list[Message] = []
        self._dropped, self._replies = 0, 0
        self._saved: set[Path] = set()

    @property
    def messages(self) -> list[Message]:
        """All messages, with those that no longer fit into the context."""
        return [*([Message("system", self._system)] if self._system else []), *self._turns]

    def take_line(self, line: str, interrupted: Callable[[], bool]) -> bool:
        """Answer a message, or obey a command; return False if it ends the conversation.

        Args:
            interrupted: called between the tokens of a reply, which ends where it returns True.

        Raises:
            BadInput: an unknown command, or a message that is refused; the conversation stays as it was.
        """
        text = check_string(line.strip(), "the message")
        if text.startswith("/") and not text.startswith("//"):
            return self._obey(*map(str.strip, (text + " ").split(" ", 1)))
        if text:
            self._answer(text.removeprefix("/") if text.startswith("//") else text, interrupted)
        return True

    def _obey(self, command: str, argument: str) -> bool:
        if argument and command in ("/reset", "/help", "/quit"):
            raise BadInput(f"{command} {argument}: the command takes no text; write {command} alone")
        match command:
            case "/quit":
                return False
            case "/help":
                terminal_output.write_output(HELP)
            case "/reset":
                self._turns, self._dropped = [], 0
            case "/system":
                self._system = argument
            case "/save":
                self._save(argument)
            case _:
                raise BadInput(
                    f"{command}: there is no such command; /help lists them, and //... writes a message that begins with /"
                )
        return True

    def _answer(self, text: str, interrupted: Callable[[], bool]) -> None:
        user = Message("user", text)
        system = [Message("system", self._system)] if self._system else []
        fitted = self._model.fit([*system, *self._turns[self._dropped :], user], self._decoding, "the conversation")
        if fitted.dropped:
            self._dropped += fitted.dropped
            notice(
                f"the conversation is longer than the context: its first {self._dropped} messages are no longer read; /reset "
                "begins a new one"
            )
        parts = self._model.generator.parts(fitted.ids, fitted.decoding, number=self._replies)
        self._replies += 1
        written, ended = [], "Ctrl-C"
        for part in without_first_space(_texts(parts, results := [], interrupted)):
            written.append(part)
            terminal_output.write_output(part)
        terminal_output.write_output("\n")
        if results:
            ended = results[0].ended
        self._keep(user, "".join(written), ended, fitted.decoding.limit)

    def _keep(self, user: Message, reply: str, ended: str, limit: int) -> None:
        """Add a turn and its reply to the conversation, with a notice if the reply is not what a user expects."""
        if ended == "Ctrl-C":
            notice("the reply was ended by Ctrl-C")
        elif ended == "limit":
            reason = "--limit" if limit == self._decoding.limit else "the context has no room for more"
            notice(f"the reply was ended after {limit} tokens ({reason})")
        if not reply.strip():
            notice("the reply is empty; the conversation goes on without this turn")
            return
        turn = [user, Message(ASSISTANT, reply)]
        try:
            check_contents(Dialogue(origin="the reply", messages=tuple(turn)), self._model.tokenizer)
        except BadInput as error:
            notice(f"{error}; the conversation goes on without this turn")
            return
        self._turns += turn

    def _save(self, name: str) -> None:
        if not name:
            raise BadInput("/save: has no file; write /save FILE")
        if not self._turns:
            raise BadInput(f"/save {name}: there is no conversation yet; write a message first")
        file = Path(name)
        if file.exists() and file.absolute() not in self._saved:
            raise BadInput(f"/save {name}: the file exists; name a new one")
        messages = [{"role": message.role, "content": message.content} for message in self.messages]
        try:
            with replace_atomically(file) as stream:
                stream.write((json.dumps({"messages": messages}, ensure_ascii=False) + "\n").encode())
        except OSError as error:
            raise cannot_write(f"/save {name}:", error) from None
        self._saved.add(file.absolute())
        notice(f"{name}: {len(messages)} messages")


def _texts(parts: Iterator[Part], results: list[Generated], interrupted: Callable[[], bool]) -> Iterator[str]:
    """Yield the texts of parts until Ctrl-C; a complete continuation is appended to `results`."""
    for part in parts:
        if part.text:
            yield part.text
        if part.generated is not None:
            results.append(part.generated)
        elif interrupted():
            return
