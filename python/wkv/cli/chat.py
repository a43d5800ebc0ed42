"""``wkv chat``: a conversation whose memory is one state."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .options import add_model, add_sampling, add_tokenizer, load_model, load_tokenizer, positive
from .options import sampling as sampling_of

if TYPE_CHECKING:
    from wkv.model import Model
    from wkv.sampling import Sampling
    from wkv.state import State
    from wkv.tokenizer import Tokenizer

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

HELP = """\
/retry       answer the last message anew
/reset       forget everything
/save FILE   keep the conversation
/load FILE   go on with one that was kept
/help        this
/quit        leave (so does the end of input)
"""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "chat", help="hold a conversation", description="Holds a conversation.", allow_abbrev=False
    )
    add_model(parser)
    add_tokenizer(parser)
    parser.add_argument("--user", default="User", help="your name in the text (default: User)")
    parser.add_argument("--bot", default="Assistant", help="the model's (default: Assistant)")
    parser.add_argument("--system", metavar="TEXT", help="what the conversation begins with")
    parser.add_argument("--max-tokens", type=positive, default=500, metavar="N")
    parser.add_argument("--load", metavar="FILE", help="a conversation that /save kept")
    add_sampling(parser, temperature=1.0, top_p=0.3)
    parser.set_defaults(run=run)


@dataclass
class Chat:
    """A conversation.

    The state is the whole memory: before each message it is copied, so that /retry is a copy
    back. A message is `User: TEXT`, a blank line, `Assistant:`, as the models were trained.
    """

    model: Model
    tokenizer: Tokenizer
    sampling: Sampling
    max_tokens: int
    user: str
    bot: str
    system: str | None
    write: Callable[[str], object]

    def __post_init__(self) -> None:
        self.turn = 0
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.state: State = self.model.new_state(record=True)
        self.before: State | None = None
        self.message = ""
        if self.system:
            self._read(self.system)

    def _read(self, text: str) -> None:
        self.model.forward(self.tokenizer.encode(text), self.state, logits="none")

    def say(self, message: str) -> str:
        """Answers a message, writing the answer as it comes; if that fails or is interrupted, the
        conversation is as before."""
        from dataclasses import replace

        from wkv.generate import generate

        self.before = self.state.copy()
        self.message = message
        self.turn += 1
        sampling = self.sampling
        if sampling.seed is not None:  # another stream for each answer, so that /retry differs
            sampling = replace(sampling, seed=(sampling.seed + self.turn) % 2**64)
        blank = "\n\n" if self.state.position else ""
        # The state ends where the answer does: a stop string is not part of what it has read.
        pieces = generate(
            self.model,
            self.tokenizer,
            f"{blank}{self.user}: {message}\n\n{self.bot}:",
            max_tokens=self.max_tokens,
            sampling=sampling,
            stop=[f"\n\n{self.user}:", f"\n{self.user}:"],
            state=self.state,
        )
        answer = ""
        try:
            for piece in pieces:
                # The space that follows the name is not shown.
                self.write(piece if answer.strip() else piece.lstrip())
                answer += piece
        except BaseException:
            self.state = self.before
            raise
        return answer.strip()

    def retry(self) -> str | None:
        """Answers the last message anew; None if there is none."""
        if self.before is None:
            return None
        self.state = self.before
        return self.say(self.message)

    def load(self, path: str) -> None:
        """Goes on with a conversation that was saved."""
        self.state = self.model.load_state(path)
        self.before = None


def _command(chat: Chat, line: str) -> bool:
    """Runs a line that begins with a slash; returns whether to go on."""
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if name in ("/quit", "/exit"):
        return False
    if name == "/reset":
        chat.reset()
        chat.write("(forgotten)\n")
    elif name == "/retry":
        if chat.retry() is None:
            chat.write("(there is nothing to answer)")
        chat.write("\n\n")
    elif name in ("/save", "/load") and argument:
        try:
            if name == "/save":
                chat.state.save(argument)
            else:
                chat.load(argument)
        except (OSError, ValueError) as error:
            chat.write(f"({error})\n")
        else:
            chat.write(f"({'saved' if name == '/save' else 'loaded'})\n")
    else:
        chat.write(HELP)
    return True


def run(arguments: argparse.Namespace) -> int:
    """Reads messages and commands until the end of input."""
    sampling = sampling_of(arguments)
    tokenizer = load_tokenizer(arguments.tokenizer)
    model = load_model(arguments)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a message that is no UTF-8 ends no conversation

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    chat = Chat(
        model=model,
        tokenizer=tokenizer,
        sampling=sampling,
        max_tokens=arguments.max_tokens,
        user=arguments.user,
        bot=arguments.bot,
        system=arguments.system,
        write=write,
    )
    if arguments.load:
        chat.load(arguments.load)
    if interactive:
        import readline  # noqa: F401 - line editing for input()

        write(f"{model!r}\n/help lists the commands.\n\n")
    while True:
        try:
            line = input(f"{arguments.user}: " if interactive else "").strip()
        except EOFError:
            break
        try:
            if line.startswith("/"):
                if not _command(chat, line):
                    break
            elif line:
                if interactive:
                    write(f"\n{arguments.bot}: ")
                chat.say(line)
                write("\n\n")
        except (KeyboardInterrupt, ValueError) as error:
            if not interactive:
                raise
            told = str(error) if isinstance(error, ValueError) else "interrupted"
            write(f" ({told})\n\n")
    return 0
