"""Bits per byte and logit error of every weight type on the small trained models.

    python bench/quality/table.py [--text jargon.txt.gz] [--bytes 65536] [MODEL ...]

Without --text the excerpt in tests/quality is read, which is the beginning of the held-out text.
With --record --bytes 2048 the figures become the golden ones of tests/quality. With
--zeros (needs torch) the share of hidden units of each channel mix that relu^2 sets to zero.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import wkv
from numpy.typing import NDArray
from train import read_text, split
from wkv.evaluate import perplexity

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "quality"
EXCERPT = FOLDER / "held_out.bin"
DTYPES = ("fp32", "fp16", "bf16", "int8", "mm8", "int4")
LOGIT_BYTES = 2048


def logits_of(model: wkv.Model, text: bytes) -> NDArray[np.float32]:
    """[T, V] logits of a text read as one stream, byte 0 first."""
    return model.forward([0, *text[:-1]], model.new_state(), logits="all")


def measure(path: Path, text: bytes, dtypes: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """For each type: bits per byte, and the largest and mean (rms) difference of logits to fp32."""
    figures: dict[str, dict[str, float]] = {}
    exact = None
    for dtype in dtypes:
        model = wkv.Model.load(path, device="cpu", dtype=dtype, threads=1)
        result = perplexity(model, np.frombuffer(text, np.uint8), len(text))
        logits = logits_of(model, text[:LOGIT_BYTES]).astype(np.float64)
        exact = logits if exact is None else exact
        error = logits - exact
        figures[dtype] = {
            "bits_per_byte": result.bits_per_byte,
            "logit_max": float(np.abs(error).max()),
            "logit_rms": float(np.sqrt((error**2).mean())),
        }
        print(path.stem, dtype, figures[dtype], file=sys.stderr)
    return figures


def zero_rates(path: Path, text: bytes) -> list[float]:
    """Share of hidden units that relu^2 sets to zero, for each layer."""
    import torch
    from models import RWKV
    from safetensors.torch import load_file

    tensors = {name: value.float() for name, value in load_file(path).items()}
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    model = RWKV(path.stem[1:], layers, tensors["emb.weight"].shape[1])
    model.load_state_dict(tensors)
    rates: list[float] = []
    for block in model.blocks:
        block.ffn.key.register_forward_hook(
            lambda _module, _inputs, out: rates.append((out <= 0).float().mean().item())
        )
    ids = torch.tensor([0, *text[: LOGIT_BYTES - 1]])
    with torch.no_grad():
        model(ids[None])
    return rates


def print_tables(all_figures: dict[str, dict[str, dict[str, float]]]) -> None:
    """Bits per byte (fp32's, then what a type adds to it), and logit errors, as Markdown."""

    def print_table(title: str, dtypes: list[str], cell: Callable[[str, str], str]) -> None:
        print(f"| {title} |", " | ".join(all_figures), "|")
        print("| --- |", " | ".join("---:" for _ in all_figures), "|")
        for dtype in dtypes:
            print(f"| {dtype} |", " | ".join(cell(name, dtype) for name in all_figures), "|")
        print()

    def bits(name: str, dtype: str) -> str:
        base = all_figures[name]["fp32"]["bits_per_byte"]
        if dtype == "fp32":
            return f"{base:.4f}"
        return f"{100 * (all_figures[name][dtype]['bits_per_byte'] / base - 1):+.3f} %"

    def error(name: str, dtype: str) -> str:
        row = all_figures[name][dtype]
        return f"{row['logit_rms']:.2g} ({row['logit_max']:.2g})"

    dtypes = list(next(iter(all_figures.values())))
    print_table("bits per byte", dtypes, bits)
    print_table("logit error: rms (max)", dtypes[1:], error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="*", help="default: those of tests/quality")
    parser.add_argument("--text", type=Path, help="the text that train.py read")
    parser.add_argument("--bytes", type=int, default=65536)
    parser.add_argument("--dtype", action="append", help="a type or a plan; may be repeated")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--zeros", action="store_true")
    arguments = parser.parse_args()
    paths = arguments.models or sorted(FOLDER.glob("v*.safetensors"))
    text = EXCERPT.read_bytes() if arguments.text is None else split(read_text(arguments.text))[1]
    text = text[: arguments.bytes]
    if arguments.zeros:
        for path in paths:
            print(f"| {path.stem} |", " | ".join(f"{r:.3f}" for r in zero_rates(path, text)), "|")
        return
    dtypes = ("fp32", *arguments.dtype) if arguments.dtype else DTYPES
    figures = {path.stem: measure(path, text, dtypes) for path in paths}
    print_tables(figures)
    if arguments.record:
        assert arguments.text is None, "golden figures are those of the excerpt"
        assert arguments.bytes == LOGIT_BYTES, f"and of its first {LOGIT_BYTES} bytes"
        (FOLDER / "golden.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
