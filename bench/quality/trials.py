"""Ways to round to int4 (4 bits, a fp16 scale per 32 inputs), compared on a trained model.

    python bench/quality/trials.py tests/quality/v7.safetensors [--bytes 4096]

Each way replaces the matrices of the blocks by what it makes of them, in fp32, so that no kernel
has a part in it. Then the same for the kept way with one kind of matrix left as it is: what that
kind costs. The findings stand in docs/design/0009-int4-rounding.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import wkv
from numpy.typing import NDArray
from safetensors.numpy import save_file
from table import EXCERPT, logits_of
from wkv.evaluate import token_losses

F32 = NDArray[np.float32]
GROUP = 32
Way = Callable[[F32, F32], F32]  # (weights [out, in], importance of inputs [in]) -> weights


def in_groups(w: F32) -> F32:
    return np.pad(w, ((0, 0), (0, -w.shape[1] % GROUP))).reshape(w.shape[0], -1, GROUP)


def stored(scale: F32) -> F32:
    return scale.astype(np.float16).astype(np.float32)


def levels(groups: F32, scale: F32) -> F32:
    return np.rint(groups / np.where(scale == 0, 1, scale)).clip(-8, 7)


def nearest(w: F32, _: F32) -> F32:
    """The plain form: the largest magnitude becomes -8."""
    groups = in_groups(w)
    at = np.abs(groups).argmax(2, keepdims=True)
    scale = stored(np.take_along_axis(groups, at, 2) / -8)
    return (levels(groups, scale) * scale).reshape(len(w), -1)[:, : w.shape[1]]


def searched(step: float, rounds: int = 0, weighted: bool = False) -> Way:
    """Scales from a search: the largest magnitude at +-6 to +-9.5 levels, each try with the factor
    that fits its codes best; `rounds` more of rounding and fitting for the best one."""

    def way(w: F32, importance: F32) -> F32:
        groups = in_groups(w)
        h = in_groups(importance[None])[0] if weighted else np.ones(groups.shape[1:], np.float32)
        at = np.abs(groups).argmax(2, keepdims=True)
        extreme = np.take_along_axis(groups, at, 2)
        best = np.zeros_like(extreme)
        gain = np.zeros_like(extreme)

        def fit(scale: F32) -> tuple[F32, F32]:
            q = levels(groups, scale)
            along = (h * groups * q).sum(2, keepdims=True)
            square = (h * q * q).sum(2, keepdims=True)
            safe = np.where(square == 0, 1, square)
            return along / safe, along**2 / safe

        for sign in (-1, 1):
            for level in np.arange(6, 9.5 + step / 2, step):
                scale, found = fit(sign * extreme / np.float32(level))
                best, gain = np.where(found > gain, scale, best), np.maximum(gain, found)
        for _ in range(rounds):
            scale, found = fit(best)
            best, gain = np.where(found > gain, scale, best), np.maximum(gain, found)
        scale = stored(best)
        return (levels(groups, scale) * scale).reshape(len(w), -1)[:, : w.shape[1]]

    return way


WAYS: dict[str, Way] = {
    "round to nearest": nearest,
    "search, 30 scales": searched(0.25),
    "search, 142 scales": searched(0.05),
    "30 scales, 3 more fits": searched(0.25, rounds=3),
    "30 scales, inputs weighted by the norm before": searched(0.25, weighted=True),
}
KEPT = "search, 30 scales"


def importance_of(name: str, tensors: dict[str, F32], n: int) -> F32:
    """E[x^2] of the inputs as far as the weights tell: after a norm it is weight^2 + bias^2."""
    block = ".".join(name.split(".")[:2])
    norm = {"att": "ln1", "ffn": "ln2"}[name.split(".")[2]]
    if name.endswith(("output.weight", "ffn.value.weight")):
        norm = "att.ln_x" if name.endswith("output.weight") else "none"
    if f"{block}.{norm}.weight" not in tensors:
        return np.ones(n, np.float32)
    w, b = (tensors[f"{block}.{norm}.{part}"].ravel() for part in ("weight", "bias"))
    return w**2 + b**2


def measure(tensors: dict[str, F32], text: bytes) -> tuple[float, NDArray[np.float64]]:
    """Bits per byte and the logits [T, V]."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
        logits = logits_of(wkv.Model.load(path, device="cpu", dtype="fp32"), text)
    nats = token_losses(logits, np.frombuffer(text, np.uint8).astype(np.int64)).mean()
    return float(nats / np.log(2)), logits.astype(np.float64)


def changed(
    tensors: dict[str, F32], way: Way, keep: Callable[[str], bool]
) -> Iterator[tuple[str, F32]]:
    for name, w in tensors.items():
        block = name.startswith("blocks.") and name.endswith(".weight") and w.ndim == 2
        if block and not keep(name):
            yield name, way(w, importance_of(name, tensors, w.shape[1]))
        else:
            yield name, w


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--bytes", type=int, default=4096)
    arguments = parser.parse_args()
    text = EXCERPT.read_bytes()[: arguments.bytes]
    file = wkv._core.Checkpoint.open(arguments.model)
    tensors = {name: file.get(name) for name in file.names()}
    base, exact = measure(tensors, text)
    print(f"| way | bits per byte ({base:.4f} in fp32) | logit error (rms) |")
    print("| --- | ---: | ---: |")

    def report(label: str, way: Way, keep: Callable[[str], bool]) -> None:
        bits, logits = measure(dict(changed(tensors, way, keep)), text)
        error = float(np.sqrt(((logits - exact) ** 2).mean()))
        print(f"| {label} | {100 * (bits / base - 1):+.2f} % | {error:.4f} |", flush=True)

    for label, way in WAYS.items():
        report(label, way, lambda _: False)
    kinds = {".".join(n.split(".")[2:]) for n in tensors if n.startswith("blocks.")}
    for kind in sorted(kinds):
        if any(n.endswith(kind) and n.endswith(".weight") and tensors[n].ndim == 2
               for n in tensors):  # fmt: skip
            report(f"all but {kind}", WAYS[KEPT], lambda n, kind=kind: n.endswith(kind))
    last = max(int(n.split(".")[1]) for n in tensors if n.startswith("blocks."))
    for block in ("blocks.0.", f"blocks.{last}."):
        report(f"all but {block}*", WAYS[KEPT], lambda n, block=block: n.startswith(block))


if __name__ == "__main__":
    main()
