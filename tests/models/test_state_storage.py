"""What it costs to keep states in fp16 or int8: the figures of docs/states.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wkv
from reference import Array
from wkv.state import StorageName

from models.goldens import GOLDENS, Golden

# Largest change of a logit, in logits of deviation 1.5 to 1.8, over the tokens read after the state
# came back. v1 exponentiates keys of up to 30, and a key's error with them.
LARGEST: dict[StorageName, float] = {"fp16": 0.005, "int8": 0.07}
LARGEST_V1 = 0.1
LARGEST_TRAINED: dict[StorageName, float] = {"fp16": 0.0015, "int8": 0.02}
NATS: dict[StorageName, float] = {"fp16": 3e-6, "int8": 5e-4}
NATS_V1 = 3e-4


def after(model: wkv.Model, prompt: list[int], rest: list[int], dtype: StorageName) -> Array:
    """Logits of `rest` with a state that was stored after `prompt`."""
    state = model.new_state()
    model.forward(prompt, state, logits="none")
    state = model.state_from_bytes(state.to_bytes(dtype))
    return model.forward(rest, state, logits="all")


def divergence(a: Array, b: Array) -> float:
    """The largest Kullback-Leibler divergence of a row, in nats."""
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in map(np.float64, (a, b)))
    return float((np.exp(p) * (p - q)).sum(axis=1).max())


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_golden(golden: Golden, dtype: StorageName) -> None:
    """Models made so that small differences show."""
    model = wkv.Model.load(golden.model, device="cpu", dtype="fp32")
    want = after(model, golden.prompt, golden.continuation, "fp32")
    got = after(model, golden.prompt, golden.continuation, dtype)
    v1 = golden.name == "v1"
    assert np.abs(got - want).max() <= (LARGEST_V1 if v1 else LARGEST[dtype])
    assert divergence(want, got) <= (NATS_V1 if v1 else NATS[dtype])


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["4v0-660K", "5v2-730K", "7v0-834K"])
def test_trained(name: str, dtype: StorageName, shared: Path) -> None:
    path = shared / "tiny" / f"tiny-rwkv-{name}.pth"
    model = wkv.Model.load(path, device="cpu", dtype="fp32")
    text = list(Path(__file__).read_bytes())
    want = after(model, text[:1000], text[1000:1200], "fp32")
    got = after(model, text[:1000], text[1000:1200], dtype)
    assert np.abs(got - want).max() <= LARGEST_TRAINED[dtype]
    assert divergence(want, got) <= NATS[dtype]
