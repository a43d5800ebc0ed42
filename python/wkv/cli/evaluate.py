"""``wkv eval``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_model, add_tokenizer, load_model, load_tokenizer, positive

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser("eval", help="measure quality", allow_abbrev=False)
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    perplexity = kinds.add_parser(
        "perplexity",
        help="bits per byte of a text",
        description="How well a model predicts a text, read as one stream.",
        allow_abbrev=False,
    )
    add_model(perplexity)
    perplexity.add_argument("text", metavar="TEXT", help="a file; its bytes are what is predicted")
    add_tokenizer(perplexity)
    perplexity.add_argument(
        "--max-bytes", type=positive, metavar="N", help="only the beginning of the text"
    )
    perplexity.add_argument("--json", action="store_true", help="one JSON object")
    perplexity.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints tokens, perplexity and bits per byte."""
    from wkv.evaluate import perplexity
    from wkv.progress import reporter

    text = Path(arguments.text).read_bytes()[: arguments.max_bytes]
    ids = load_tokenizer(arguments.tokenizer).encode(text)
    model = load_model(arguments)
    with reporter(True if sys.stderr.isatty() else None, "reading", "token") as progress:
        result = perplexity(model, ids, len(text), progress=progress)
    figures = {
        "tokens": result.tokens,
        "bytes": result.bytes,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
    }
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
            print(f"{name.replace('_', ' '):14}{shown:>12}")
    return 0
