"""Trains one small byte-level RWKV and writes it as an official-layout checkpoint (bf16).

    python bench/quality/train.py --version 7 --text jargon.txt.gz --out v7.safetensors

The text is the Jargon File (public domain) as Debian's package `jargon-text` has it
(/usr/share/doc/jargon-text/jargon.txt.gz). The last tenth is held out; its first 16 KiB are
tests/quality/held_out.bin. Of the models of tests/quality v7 was trained with 500 steps, the others
with 150 (about 85 s), on one thread.
Deterministic for one machine, thread count and torch version. `--device cuda` trains the same model
faster; on a CPU GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4294967296 saves the system's time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from models import RWKV
from safetensors.torch import save_file


def read_text(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def split(text: bytes) -> tuple[bytes, bytes]:
    """Training text and the held-out tail."""
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    device = torch.device(args.device)
    model = RWKV(args.version, args.layers, args.channels).to(device)
    text, held_out = split(read_text(args.text))
    data = torch.from_numpy(np.frombuffer(text, np.uint8).copy()).long()
    rng = torch.Generator().manual_seed(args.seed)

    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.99),
        fused=True,
    )
    began = time.process_time()
    for step in range(args.steps):
        warm = min(1.0, (step + 1) * 10 / args.steps)
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / args.steps)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warm * (0.05 + 0.95 * cosine)
        start = torch.randint(len(data) - args.length - 1, (args.batch,), generator=rng)
        rows = torch.stack([data[s : s + args.length + 1] for s in start.tolist()]).to(device)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 or step + 1 == args.steps:
            bits = loss.item() / math.log(2)
            print(
                f"{step:5d}  {bits:.3f} bits/byte  {time.process_time() - began:.0f} s", flush=True
            )

    tensors = {
        k: v.detach().cpu().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out)
    model.load_state_dict({k: v.float() for k, v in tensors.items()})
    bits = evaluate(model, held_out[: args.eval_bytes], device)
    report = {
        "version": args.version,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": args.steps,
        "tokens": args.steps * args.batch * args.length,
        "cpu_seconds": round(time.process_time() - began, 1),
        "device": args.device,
        "eval_bytes": args.eval_bytes,
        "bits_per_byte": round(bits, 4),
    }
    print(json.dumps(report))
    args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


@torch.no_grad()
def evaluate(model: RWKV, text: bytes, device: torch.device) -> float:
    """Bits per byte of `text` read as one stream, bf16 weights in fp32 arithmetic."""
    ids = torch.from_numpy(np.frombuffer(text, np.uint8).copy()).long().to(device)
    inputs = torch.cat([ids.new_zeros(1), ids[:-1]])  # byte 0 begins a document
    length = len(ids) // 16 * 16
    logits = model(inputs[None, :length])[0]
    return F.cross_entropy(logits, ids[:length]).item() / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", choices=["4", "5.2", "6", "7"], required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--channels", type=int, default=192)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--eval-bytes", type=int, default=65536)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
