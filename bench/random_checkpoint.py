"""Writes random weights in the official .pth layout, at any size, for every runtime to time.

    python bench/random_checkpoint.py v7:24x1024:65536 model.pth [--dtype bf16]
    python bench/random_checkpoint.py --hugging-face model.pth folder

The second form rewrites a v6 or v7 file in the layout that llama.cpp's converter reads. Speed does
not depend on the values of the weights.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEAD = 64


def parse_spec(spec: str) -> tuple[str, int, int, int]:
    """Version, layers, channels, vocabulary of "v7:24x1024[:65536]"."""
    match = re.fullmatch(r"(v4|v5\.2|v6|v7):(\d+)x(\d+)(?::(\d+))?", spec)
    if match is None:
        raise ValueError(f"{spec!r} is not VERSION:LAYERSxCHANNELS[:VOCABULARY], version v4 to v7")
    vocab = int(match[4] or (50277 if match[1] == "v4" else 65536))
    return match[1], int(match[2]), int(match[3]), vocab


def matrix(rows: int, cols: int, scale: float = 0.5) -> torch.Tensor:
    return torch.randn(rows, cols) * (scale / cols**0.5)


def mix(C: int) -> torch.Tensor:
    return torch.rand(1, 1, C)


def norm(weights: dict[str, torch.Tensor], name: str, C: int) -> None:
    weights[name + ".weight"] = torch.ones(C)
    weights[name + ".bias"] = torch.zeros(C)


def time_mix(version: str, C: int) -> dict[str, torch.Tensor]:
    """The tensors below `blocks.N.att.`; names and shapes of the official checkpoints."""
    H = C // HEAD
    w = {f"{n}.weight": matrix(C, C) for n in ("receptance", "key", "value", "output")}
    if version == "v4":
        w |= {"time_decay": torch.linspace(-5, 3, C), "time_first": torch.rand(C) - 1}
        w |= {f"time_mix_{n}": mix(C) for n in "kvr"}
        return w
    norm(w, "ln_x", C)
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


def channel_mix(version: str, C: int) -> dict[str, torch.Tensor]:
    """The tensors below `blocks.N.ffn.`."""
    F = 4 * C if version in ("v4", "v7") else int(C * 3.5) // 32 * 32
    w = {"key.weight": matrix(F, C), "value.weight": matrix(C, F)}
    if version == "v7":
        return w | {"x_k": mix(C)}
    prefix = "time_maa_" if version == "v6" else "time_mix_"
    return w | {
        "receptance.weight": matrix(C, C),
        prefix + "k": mix(C),
        prefix + "r": mix(C),
    }


def build(spec: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """All tensors of a model, fp32."""
    version, layers, C, V = parse_spec(spec)
    torch.manual_seed(seed)
    weights = {"emb.weight": torch.randn(V, C) * 0.02}
    norm(weights, "blocks.0.ln0", C)
    for i in range(layers):
        norm(weights, f"blocks.{i}.ln1", C)
        norm(weights, f"blocks.{i}.ln2", C)
        weights |= {f"blocks.{i}.att.{n}": t for n, t in time_mix(version, C).items()}
        weights |= {f"blocks.{i}.ffn.{n}": t for n, t in channel_mix(version, C).items()}
    norm(weights, "ln_out", C)
    weights["head.weight"] = matrix(V, C)
    return weights


RENAMED = {
    "6": [
        ("blocks.", "rwkv.blocks."),
        ("emb.weight", "rwkv.embeddings.weight"),
        ("blocks.0.ln0", "blocks.0.pre_ln"),
        ("ln_out", "rwkv.ln_out"),
    ],
    "7": [
        ("blocks.", "model.layers."),
        ("emb.weight", "model.embeddings.weight"),
        ("model.layers.0.ln0", "model.pre_ln"),
        ("ln_out", "model.ln_out"),
        ("head.weight", "lm_head.weight"),
    ],
}


def write_hugging_face(source: Path, folder: Path) -> None:
    """Rewrites a v6 or v7 .pth as model.safetensors and config.json."""
    from safetensors.torch import save_file

    weights = torch.load(source, map_location="cpu", weights_only=True)
    version = "7" if "blocks.0.att.r_k" in weights else "6"
    renames = [*RENAMED[version], (".att.", ".attention."), (".ffn.", ".feed_forward.")]

    def rename(name: str) -> str:
        for old, new in renames:
            name = name.replace(old, new)
        return name

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {rename(name): tensor.contiguous() for name, tensor in weights.items()},
        folder / "model.safetensors",
    )
    vocab, C = weights["emb.weight"].shape
    config: dict[str, object] = {
        "hidden_size": C,
        "num_hidden_layers": 1 + max(int(n.split(".")[1]) for n in weights if n[:7] == "blocks."),
        "vocab_size": vocab,
        "head_size": HEAD,
        "layer_norm_epsilon": 1e-5,
        "intermediate_size": weights["blocks.0.ffn.key.weight"].shape[0],
        "architectures": [f"Rwkv{version}ForCausalLM"],
        "model_type": f"rwkv{version}",
    }
    if version == "6":
        config["rescale_every"] = 6
    else:
        for key, name in (
            ("lora_rank_decay", "w1"),
            ("lora_rank_iclr", "a1"),
            ("lora_rank_value_residual_mix", "v1"),
            ("lora_rank_gate", "g1"),
        ):
            config[key] = weights[f"blocks.1.att.{name}"].shape[1]
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Random weights in the official layout.")
    parser.add_argument("source", help="v7:24x1024[:65536]; with --hugging-face a .pth file")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--hugging-face", action="store_true")
    arguments = parser.parse_args()
    if arguments.hugging_face:
        write_hugging_face(Path(arguments.source), arguments.out)
        return
    dtype = DTYPES[arguments.dtype]
    torch.save({n: t.to(dtype) for n, t in build(arguments.source).items()}, arguments.out)


if __name__ == "__main__":
    main()
