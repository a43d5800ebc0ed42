"""``wkv generate``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_model, add_sampling, add_tokenizer, load_model, load_tokenizer, positive
from .options import sampling as sampling_of

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "generate", help="continue a text", description="Continues a text.", allow_abbrev=False
    )
    add_model(parser)
    add_tokenizer(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="the text (default: standard input)")
    source.add_argument("--prompt-file", metavar="FILE", help="a file that holds the text")
    parser.add_argument("--max-tokens", type=positive, default=200, metavar="N")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="S", help="end before this; may be repeated"
    )
    parser.add_argument("--echo", action="store_true", help="write the prompt too")
    parser.add_argument("--state", metavar="FILE", help="go on from a saved state")
    parser.add_argument("--save-state", metavar="FILE", help="save the state at the end")
    add_sampling(parser, temperature=1.0, top_p=0.85)
    parser.set_defaults(run=run)


def _prompt(arguments: argparse.Namespace) -> bytes:
    """The prompt, byte for byte, of whatever encoding."""
    if arguments.prompt is not None:
        return str(arguments.prompt).encode("utf-8", "surrogateescape")
    if arguments.prompt_file is not None:
        return Path(arguments.prompt_file).read_bytes()
    return sys.stdin.buffer.read()


def run(arguments: argparse.Namespace) -> int:
    """Writes the text as it comes."""
    from wkv.generate import generate

    sampling = sampling_of(arguments)
    tokenizer = load_tokenizer(arguments.tokenizer)
    model = load_model(arguments)
    prompt = _prompt(arguments)
    if arguments.state is None:
        state = model.new_state(record=True)
    else:
        state = model.load_state(arguments.state)
    if arguments.echo:
        sys.stdout.buffer.write(prompt)
        sys.stdout.buffer.flush()
    pieces = generate(
        model,
        tokenizer,
        prompt,
        max_tokens=arguments.max_tokens,
        sampling=sampling,
        stop=arguments.stop,
        state=state,
        # A short prompt is read before anybody could look at a bar.
        progress=True if sys.stderr.isatty() and len(prompt) > 4000 else None,
    )
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    if sys.stdout.isatty():
        sys.stdout.write("\n")
    if arguments.save_state is not None:
        state.save(arguments.save_state)
    return 0
