"""``wkv info``, ``wkv convert`` and ``wkv stats``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from .options import add_dtype, add_model, add_tokenizer, load_model, load_tokenizer, positive

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parsers(commands: Commands) -> None:
    """Adds the commands."""
    info = commands.add_parser("info", help="what a checkpoint is", allow_abbrev=False)
    info.add_argument("file", metavar="FILE", help="a .pth or .safetensors checkpoint")
    info.add_argument("--json", action="store_true", help="one JSON object")
    info.add_argument("--tensors", action="store_true", help="list every tensor")
    info.set_defaults(run=run_info)

    convert = commands.add_parser(
        "convert", help="write a checkpoint as .safetensors", allow_abbrev=False
    )
    convert.add_argument("input", metavar="IN", help="a .pth or .safetensors checkpoint")
    convert.add_argument("output", metavar="OUT", help="the .safetensors file to write")
    add_dtype(convert)
    convert.add_argument("--force", action="store_true", help="overwrite OUT")
    convert.set_defaults(run=run_convert)

    stats = commands.add_parser(
        "stats",
        help="statistics of embeddings over a corpus",
        description="Mean and deviation of each channel of the texts' embeddings, for "
        "Model.embed(stats=...).",
        allow_abbrev=False,
    )
    add_model(stats)
    add_tokenizer(stats)
    stats.add_argument("corpus", metavar="TEXTS", help="a file with one text on each line")
    stats.add_argument("output", metavar="OUT", help="the .npz file to write")
    stats.add_argument(
        "--part",
        action="append",
        metavar="NAME",
        help="hidden, or a name or pattern such as 'blocks.*.att.shift'; may be repeated "
        "(default: hidden)",
    )
    stats.add_argument("--batch-size", type=positive, default=16, metavar="N")
    stats.set_defaults(run=run_stats)


def run_info(arguments: argparse.Namespace) -> int:
    """Prints version, sizes and types of a checkpoint."""
    from wkv import _core

    file = _core.Checkpoint.open(arguments.file)
    info: dict[str, Any] = file.info()
    tensors = [(name, file.dtype(name), file.shape(name)) for name in file.names()]
    dtypes = Counter(dtype for _, dtype, _ in tensors)
    if arguments.json:
        info["dtypes"] = dict(dtypes)
        if arguments.tensors:
            info["tensors"] = {
                name: {"dtype": dtype, "shape": shape} for name, dtype, shape in tensors
            }
        print(json.dumps(info))
        return 0
    rows = {
        "version": f"RWKV-{info['version']}",
        "parameters": f"{info['n_params']:,}",
        "layers": info["n_layer"],
        "channels": info["n_embd"],
        "heads": f"{info['n_head']} x {info['head_size']}" if info["n_head"] else "none",
        "feed-forward": info["dim_ffn"],
        "vocabulary": info["n_vocab"],
        "context": "unlimited" if info["context_limit"] is None else info["context_limit"],
        "stored as": ", ".join(f"{dtype} ({n} tensors)" for dtype, n in dtypes.most_common()),
    }
    for name, value in rows.items():
        print(f"{name:<13} {value}")
    if arguments.tensors:
        print()
        for name, dtype, shape in tensors:
            print(f"{name:<45} {dtype:<5} {'x'.join(map(str, shape))}")
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    """Writes a checkpoint as safetensors."""
    from wkv.dtypes import convert

    output = arguments.output
    if not output.endswith(".safetensors"):
        raise ValueError(f"[convert] OUT must end in .safetensors, got '{output}'")
    if os.path.exists(output) and not arguments.force:
        raise ValueError(f"[convert] '{output}' exists; --force overwrites it")
    progress = True if sys.stderr.isatty() else None
    convert(arguments.input, output, arguments.dtype, progress)
    return 0


def run_stats(arguments: argparse.Namespace) -> int:
    """Collects statistics of embeddings."""
    from wkv.embedding import collect_stats

    with open(arguments.corpus, encoding="utf-8") as file:
        texts = [line.rstrip("\n") for line in file if line.strip()]
    stats = collect_stats(
        load_model(arguments),
        texts,
        load_tokenizer(arguments.tokenizer),
        arguments.part or "hidden",
        arguments.batch_size,
        True if sys.stderr.isatty() else None,
    )
    stats.save(arguments.output)
    print(f"{stats.count} texts, {len(stats.mean)} channels: {arguments.output}")
    return 0
