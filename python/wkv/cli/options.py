"""Options that several commands share."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wkv.model import Model
    from wkv.sampling import Sampling
    from wkv.tokenizer import Tokenizer

PRECISIONS = ("auto", "exact", "fast", "w8a8")
DTYPES = ("auto", "fp32", "fp16", "bf16", "int8", "int4", "mm8")


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def add_model(parser: argparse.ArgumentParser) -> None:
    """The file of a model and how to run it."""
    parser.add_argument("file", metavar="FILE", help="a .pth or .safetensors checkpoint")
    parser.add_argument(
        "--device",
        default="auto",
        help="auto (a GPU if one is usable and large enough), cpu, cuda, cuda:1 (default: auto)",
    )
    add_dtype(parser)
    parser.add_argument(
        "--matmul-precision",
        default="auto",
        choices=PRECISIONS,
        help="of prefill, where the processor has units faster than those of fp32 (default: auto)",
    )
    parser.add_argument("--threads", type=positive, help="CPU threads (default: physical cores)")
    parser.add_argument("--lora", metavar="FILE", help="merge this adapter (needs --lora-alpha)")
    parser.add_argument("--lora-alpha", type=float, metavar="X", help="what it was trained with")
    parser.add_argument(
        "--tuned-state", metavar="FILE", help="begin with a trained initial state (v5 to v7)"
    )
    parser.add_argument(
        "--as-version", metavar="V", help="6.0c, which a file cannot tell from 6.0b by itself"
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """The type of the weights, or a plan."""
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="TYPE",
        help=f"type of the weights: {', '.join(DTYPES)}; or a plan such as "
        "'int4,blocks.0.*=int8' (default: as stored)",
    )


def add_tokenizer(parser: argparse.ArgumentParser) -> None:
    """The tokenizer."""
    parser.add_argument(
        "--tokenizer",
        default="world",
        metavar="NAME",
        help="world, bytes, a tokenizer.json, or a vocabulary file (default: world)",
    )


def add_sampling(parser: argparse.ArgumentParser, temperature: float, top_p: float) -> None:
    """How to draw tokens; what is not given keeps the default of wkv.Sampling."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature",
        type=float,
        default=temperature,
        metavar="X",
        help=f"0 is greedy (default: {temperature})",
    )
    group.add_argument("--top-p", type=float, default=top_p, metavar="X", help=f"default: {top_p}")
    group.add_argument("--top-k", type=int, metavar="N")
    group.add_argument("--min-p", type=float, metavar="X")
    group.add_argument("--presence-penalty", type=float, metavar="X")
    group.add_argument("--frequency-penalty", type=float, metavar="X")
    group.add_argument("--penalty-decay", type=float, metavar="X")
    group.add_argument("--seed", type=int, metavar="N", help="default: another one each time")


def sampling(arguments: argparse.Namespace) -> Sampling:
    """What add_sampling() asked for."""
    from wkv.sampling import Sampling

    names = (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "penalty_decay",
        "seed",
    )
    given = {name: getattr(arguments, name) for name in names}
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def load_model(arguments: argparse.Namespace) -> Model:
    """Opens the model; with a bar if somebody looks at standard error."""
    from wkv.model import Model

    model = Model.load(
        arguments.file,
        device=arguments.device,
        dtype=arguments.dtype,
        threads=arguments.threads,
        progress=True if sys.stderr.isatty() else None,
        matmul_precision=arguments.matmul_precision,
        lora=arguments.lora,
        lora_alpha=arguments.lora_alpha,
        version=arguments.as_version,
    )
    if arguments.tuned_state is not None:
        model.set_initial_state(model.load_tuned_state(arguments.tuned_state))
    return model


def load_tokenizer(name: str) -> Tokenizer:
    """``world``, ``bytes`` or a file."""
    from wkv.tokenizer import Tokenizer

    if name == "world":
        return Tokenizer.world()
    if name == "bytes":
        return Tokenizer.bytes()
    return Tokenizer.from_file(name)
