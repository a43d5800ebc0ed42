"""Writes random weights in the official .pth layout, at any size, for every runtime to time.

    python bench/random_checkpoint.py v7:24x1024:65536[@0.2] model.pth [--dtype bf16]

Speed does not depend on the values of the weights, but for those of ffn.key. Random ones make half
of the hidden units zero after relu^2; @DENSITY is the share that shall not be zero, at most 0.5, by
rows of ffn.key that are zero.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEAD = 64


def parse_spec(spec: str) -> tuple[str, int, int, int, float]:
    """Version, layers, channels, vocabulary, density of "v7:24x1024[:65536][@0.2]"."""
    match = re.fullmatch(r"(v4|v5\.2|v6|v7):(\d+)x(\d+)(?::(\d+))?(?:@(0?\.\d+))?", spec)
    density = float(match[5] or 0.5) if match else 0.0
    if match is None or not 0 < density <= 0.5:
        raise ValueError(
            f"{spec!r} is not VERSION:LAYERSxCHANNELS[:VOCABULARY][@DENSITY], version v4 to v7, "
            "density above 0 and at most 0.5"
        )
    vocab = int(match[4] or (50277 if match[1] == "v4" else 65536))
    return match[1], int(match[2]), int(match[3]), vocab, density


def matrix(rows: int, cols: int, scale: float = 0.5) -> torch.Tensor:
    return torch.randn(rows, cols) * (scale / cols**0.5)


def mix(C: int) -> torch.Tensor:
    return torch.rand(1, 1, C)


def norm(name: str, C: int) -> dict[str, torch.Tensor]:
    return {name + ".weight": torch.ones(C), name + ".bias": torch.zeros(C)}


def time_mix(version: str, C: int) -> dict[str, torch.Tensor]:
    """The tensors below `blocks.N.att.`; names and shapes of the official checkpoints."""
    H = C // HEAD
    w = {f"{n}.weight": matrix(C, C) for n in ("receptance", "key", "value", "output")}
    if version == "v4":
        w |= {"time_decay": torch.linspace(-5, 3, C), "time_first": torch.rand(C) - 1}
        w |= {f"time_mix_{n}": mix(C) for n in "kvr"}
        return w
    w |= norm("ln_x", C)
    if version in ("v5.2", "v6"):
        w |= {"gate.weight": matrix(C, C), "time_faaaa": torch.rand(H, HEAD)}
    if version == "v5.2":
        w |= {"time_decay": torch.linspace(-6, 1, C).view(H, HEAD)}
        w |= {f"time_mix_{n}": mix(C) for n in "kvrg"}
    elif version == "v6":
        rank, decay_rank = (32, 64) if C < 4096 else (64, 128)
        w |= {f"time_maa_{n}": mix(C) for n in "xwkvrg"}
        w["time_maa_w1"] = torch.randn(C, 5 * rank) * 1e-2
        w["time_maa_w2"] = torch.randn(5, rank, C) * 1e-2
        w["time_decay"] = torch.linspace(-6, 1, C).view(1, 1, C)
        w["time_decay_w1"] = torch.randn(C, decay_rank) * 1e-2
        w["time_decay_w2"] = torch.randn(decay_rank, C) * 1e-2
    else:

        def rank_of(factor: float, power: float) -> int:
            return max(32, round(factor * C**power / 32) * 32)

        ranks = {"w": rank_of(1.8, 0.5), "a": rank_of(1.8, 0.5), "v": rank_of(1.3, 0.5)}
        w |= {f"x_{n}": mix(C) for n in "rwkvag"}
        for n, rank in ranks.items():
            w[n + "0"] = torch.linspace(-6, -1, C).view(1, 1, C) if n == "w" else mix(C) - 0.5
            w[n + "1"] = torch.randn(C, rank) * 1e-2
            w[n + "2"] = torch.randn(rank, C) * 1e-2
        gate_rank = rank_of(0.6, 0.8)
        w |= {"g1": torch.randn(C, gate_rank) * 1e-2, "g2": torch.randn(gate_rank, C) * 1e-1}
        w |= {"k_k": torch.full((1, 1, C), 0.85), "k_a": torch.ones(1, 1, C)}
        w["r_k"] = torch.randn(H, HEAD) * 0.1
    return w


def channel_mix(version: str, C: int, density: float) -> dict[str, torch.Tensor]:
    """The tensors below `blocks.N.ffn.`."""
    F = 4 * C if version in ("v4", "v7") else int(C * 3.5) // 32 * 32
    w = {"key.weight": matrix(F, C), "value.weight": matrix(C, F)}
    w["key.weight"][torch.rand(F) < 1 - 2 * density] = 0  # of random rows every other is negative
    if version == "v7":
        return w | {"x_k": mix(C)}
    prefix = "time_maa_" if version == "v6" else "time_mix_"
    return w | {
        "receptance.weight": matrix(C, C),
        prefix + "k": mix(C),
        prefix + "r": mix(C),
    }


def build(spec: str, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """All tensors of a model; at most one layer of them is held in fp32 as well."""
    version, layers, C, V, density = parse_spec(spec)
    torch.manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}

    def add(prefix: str, tensors: dict[str, torch.Tensor]) -> None:
        weights.update({prefix + n: t.to(dtype) for n, t in tensors.items()})

    add("", {"emb.weight": torch.randn(V, C) * 0.02})
    add("", norm("blocks.0.ln0", C))
    for i in range(layers):
        add(f"blocks.{i}.", norm("ln1", C) | norm("ln2", C))
        add(f"blocks.{i}.att.", time_mix(version, C))
        add(f"blocks.{i}.ffn.", channel_mix(version, C, density))
    add("", norm("ln_out", C))
    add("", {"head.weight": matrix(V, C)})
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description="Random weights in the official layout.")
    parser.add_argument("spec", help="v7:24x1024[:65536][@0.2]")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    arguments = parser.parse_args()
    torch.save(build(arguments.spec, DTYPES[arguments.dtype]), arguments.out)


if __name__ == "__main__":
    main()
