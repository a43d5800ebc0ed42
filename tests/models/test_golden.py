"""Logits and states of the official code (tests/golden), on every ISA and weight type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wkv
from reference import Array

from models.goldens import GOLDENS, ROOT, Golden

FP32_TOLERANCE = 5e-5
# With AMX, products of 16 rows take x and W in two parts of bf16, which errs by 2^-17 of each.
TILES = any(isa.name == "amx" and isa.active for isa in wkv.isas())
STORED_TOLERANCE = 3e-4 if TILES else FP32_TOLERANCE
# The official code's own error with bf16 and fp16, max abs, per file.
HALF_TOLERANCE = {
    "v4": {"bf16": 0.040, "fp16": 0.0046},
    "v5_0": {"bf16": 0.17, "fp16": 0.020},
    "v5_1": {"bf16": 0.13, "fp16": 0.022},
    "v5_2": {"bf16": 0.056, "fp16": 0.0070},
    "v6": {"bf16": 0.092, "fp16": 0.0095},
    "v7": {"bf16": 0.11, "fp16": 0.018},
}
# For files that it only ran in fp32.
SUGGESTED = {"bf16": 0.25, "fp16": 0.03}


def check_state(state: wkv.State, expected: dict[str, Array], tolerance: float) -> None:
    """Relative to the largest element of a part; histories as far as they are filled."""
    for name, part in expected.items():
        got = np.asarray(state[name])
        assert got.shape[1:] == part.shape[1:], name
        error = np.abs(got[: len(part)] - part).max()
        assert error <= tolerance * max(1.0, float(np.abs(part).max())), name


@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_fp32(golden: Golden, isa: str) -> None:
    model = wkv.Model.load(golden.model, device="cpu", dtype="fp32", threads=2)
    state = model.new_state()
    logits = model.forward(golden.prompt, state, logits="all")
    assert logits.dtype == np.float32
    assert logits.shape == golden.logits.shape
    assert np.abs(logits - golden.logits).max() <= FP32_TOLERANCE
    assert state.position == len(golden.prompt)
    check_state(state, golden.state, 5e-5)

    saved = model.state_from_bytes(state.to_bytes())
    logits = model.forward(golden.continuation, saved, logits="all")
    assert np.abs(logits - golden.logits_cont).max() <= FP32_TOLERANCE
    for token, expected in zip(golden.continuation, golden.logits_cont, strict=True):
        assert np.abs(model.forward([token], state) - expected).max() <= FP32_TOLERANCE


@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_continuation_from_the_official_state(golden: Golden) -> None:
    if not golden.state or "head_k.rows" in golden.state:
        pytest.skip("no saved state of the official code, or one without the tokens it has read")
    model = wkv.Model.load(golden.model, device="cpu", dtype="fp32")
    state = model.new_state()
    names = list(state.keys())
    for name in names:
        state[name] = golden.state[name]
    logits = model.forward(golden.continuation, state, logits="all")
    assert np.abs(logits - golden.logits_cont).max() <= FP32_TOLERANCE


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_half(golden: Golden, dtype: str, isa: str) -> None:
    model = wkv.Model.load(golden.model, device="cpu", dtype=dtype)
    assert model.dtype == dtype
    state = model.new_state()
    logits = model.forward(golden.prompt + golden.continuation, state, logits="all")
    error = np.abs(logits - np.concatenate([golden.logits, golden.logits_cont])).max()
    assert error <= HALF_TOLERANCE.get(golden.name, SUGGESTED)[dtype]


@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_stored_bf16_is_exact(golden: Golden) -> None:
    """v4 and later are bf16 files: "auto" keeps their weights, so fp32's tolerance holds."""
    model = wkv.Model.load(golden.model, device="cpu")
    logits = model.forward(golden.prompt, model.new_state(), logits="all")
    assert np.abs(logits - golden.logits).max() <= STORED_TOLERANCE


@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [
        ("bf16", "fast", 0.25),
        ("fp16", "fast", 0.25),
        ("bf16", "exact", 0.25),
        ("int8", "exact", 0.3),
        ("int8", "fast", 0.3),
        ("int8", "w8a8", 0.6),
        ("mm8", "w8a8", 0.6),
    ],
)
@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_precision(golden: Golden, dtype: str, precision: str, tolerance: float, isa: str) -> None:
    """Every precision of prefill, where the ISA has it."""
    model = wkv.Model.load(golden.model, device="cpu", dtype=dtype, matmul_precision=precision)
    logits = model.forward(golden.prompt, model.new_state(), logits="all")
    assert np.abs(logits - golden.logits).max() <= tolerance


@pytest.mark.parametrize("dtype", ["int8", "mm8"])
@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_int8(golden: Golden, dtype: str, isa: str) -> None:
    """The rwkv package's own int8 errs by 0.06 to 0.19 on the v4 to v6 files."""
    model = wkv.Model.load(golden.model, device="cpu", dtype=dtype)
    assert model.dtype == dtype
    logits = model.forward(golden.prompt, model.new_state(), logits="all")
    assert np.abs(logits - golden.logits).max() <= 0.3


PTH = sorted(p for p in ROOT.rglob("*.pth"))


@pytest.mark.parametrize("path", PTH, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_containers(path: Path) -> None:
    """Every kind of .pth gives the logits of its .safetensors twin."""
    twins = {"pth_variants_of_v4": "v4", "v1_pickled_module": "v1"}
    golden = Golden(twins.get(path.parent.name, path.parent.name))
    model = wkv.Model.load(path, device="cpu", dtype="fp32")
    logits = model.forward(golden.prompt, model.new_state(), logits="all")
    assert np.abs(logits - golden.logits).max() <= FP32_TOLERANCE


@pytest.mark.parametrize("name", ["4v0-660K", "5v2-730K", "7v0-834K"])
def test_trained_tiny_models(name: str, shared: Path, isa: str) -> None:
    """rwkv.cpp's tiny models: its own expected logits after `"in`, and the rwkv package's."""
    tiny = shared / "tiny"
    if not tiny.is_dir():
        pytest.skip(f"no {tiny}")
    model = wkv.Model.load(tiny / f"tiny-rwkv-{name}.pth", device="cpu", dtype="fp32")
    logits = model.forward(list(b'"in the '), model.new_state(), logits="all")
    assert np.abs(logits[2] - np.load(tiny / f"expected-logits-{name}.npy")).max() <= 1e-4
    assert np.abs(logits - np.load(tiny / f"pip-logits-{name}.npy")).max() <= 1e-4


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_three_layers_of_v7(dtype: str, shared: Path) -> None:
    """v_first reaches every layer (too large a file for tests/golden)."""
    path = shared / "golden_extra" / "v7_3layers"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    golden = Golden(str(path))
    model = wkv.Model.load(golden.model, device="cpu", dtype=dtype)
    logits = model.forward(golden.prompt, model.new_state(), logits="all")
    tolerance = STORED_TOLERANCE if dtype == "bf16" else FP32_TOLERANCE
    assert np.abs(logits - golden.logits).max() <= tolerance
