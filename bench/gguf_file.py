"""Rewrites a v6 or v7 checkpoint of random_checkpoint.py as the f16 GGUF that llama.cpp opens.

    python bench/gguf_file.py model.pth model-f16.gguf

Matrices become f16. Vectors and what llama.cpp's own converter leaves in fp32 (low-rank factors of
decay and token shift, mixing parameters) become fp32. There is no vocabulary inside: token ids are
all that a benchmark needs. Needs the packages `gguf` and torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

HEAD = 64
OUTER = {
    "emb.weight": "token_embd.weight",
    "head.weight": "output.weight",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
}
NORMS = {"ln1": "attn_norm", "ln2": "attn_norm_2", "att.ln_x": "time_mix_ln"}
RENAMED = {  # v6 to llama.cpp; other names keep what follows "att." and "ffn."
    "time_maa_w1": "w1",
    "time_maa_w2": "w2",
    "time_maa_x": "lerp_x",
    "time_faaaa": "first",
    "time_decay": "decay",
    "time_decay_w1": "decay_w1",
    "time_decay_w2": "decay_w2",
    "time_maa_k": "lerp_k",
    "time_maa_r": "lerp_r",
    "x_k": "lerp_k",
}
TRANSPOSED = {"w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2", "decay_w1", "decay_w2"}
FP32 = {"w1", "w2", "first", "decay_w1", "decay_w2", "lerp_fused"}

Tensors = dict[str, torch.Tensor]


def block_tensors(weights: Tensors, layer: int, version: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Names below `blk.N.`, without ".weight" unless it is a bias, and values."""
    prefix = f"blocks.{layer}."
    own = {n[len(prefix) :]: t for n, t in weights.items() if n.startswith(prefix)}
    for norm, theirs in NORMS.items():
        yield theirs, own[norm + ".weight"]
        yield theirs + ".bias", own[norm + ".bias"]
    shifts = [f"att.x_{n}" for n in "rwkvag"] if version == "7" else []
    shifts = shifts or [f"att.time_maa_{n}" for n in "wkvrg"]
    yield "time_mix_lerp_fused", torch.stack([own[n].view(1, 1, -1) for n in shifts])
    for name, tensor in own.items():
        part, _, rest = name.partition(".")
        if part not in ("att", "ffn") or name in shifts or rest.startswith("ln_x"):
            continue
        if layer == 0 and name in ("att.v0", "att.v1", "att.v2"):
            continue
        short = rest.removesuffix(".weight")
        short = RENAMED.get(short, short)
        value = tensor.squeeze()
        if short in TRANSPOSED:
            value = value.transpose(-1, -2)
        if short == "r_k":
            value = value.flatten()
        yield f"{'time' if part == 'att' else 'channel'}_mix_{short}", value
        if layer == 0 and short in ("a0", "a1", "a2"):  # v's are never read there, but wanted
            yield f"time_mix_v{short[1]}", value


def write(source: Path, out: Path) -> None:
    import gguf
    import numpy as np

    weights: Tensors = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    version = "7" if "blocks.0.att.r_k" in weights else "6"
    if version == "6" and "blocks.0.att.time_maa_w1" not in weights:
        raise ValueError(f"{source}: llama.cpp runs v6 and v7, this is an older version")
    vocab, channels = weights["emb.weight"].shape
    layers = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks."))

    writer = gguf.GGUFWriter(out, f"rwkv{version}")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(channels)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(weights["blocks.0.ffn.key.weight"].shape[0])
    writer.add_head_count(0)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(HEAD)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(vocab)
    if version == "7":
        last = f"blocks.{layers - 1}.att."
        writer.add_decay_lora_rank(weights[last + "w1"].shape[1])
        writer.add_iclr_lora_rank(weights[last + "a1"].shape[1])
        writer.add_value_residual_mix_lora_rank(weights[last + "v1"].shape[1])
        writer.add_gate_lora_rank(weights[last + "g1"].shape[1])
    else:
        writer.add_time_mix_extra_dim(weights["blocks.0.att.time_maa_w2"].shape[1])
        writer.add_time_decay_extra_dim(weights["blocks.0.att.time_decay_w1"].shape[1])

    def add(name: str, tensor: torch.Tensor, *, wide: bool) -> None:
        values = tensor.float().contiguous().numpy()
        writer.add_tensor(name, values if wide or values.ndim == 1 else values.astype(np.float16))

    for name, theirs in OUTER.items():
        add(theirs, weights[name], wide=False)
    for layer in range(layers):
        for name, tensor in block_tensors(weights, layer, version):
            wide = name.removeprefix("time_mix_") in FP32
            suffix = "" if name.endswith(".bias") else ".weight"
            add(f"blk.{layer}.{name}{suffix}", tensor, wide=wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A GGUF of random weights, for llama.cpp.")
    parser.add_argument("source", type=Path, help="a .pth file")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
