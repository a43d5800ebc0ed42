"""Quantised weights of any shape and values: packing, ranges, errors, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.harness import F32, F64, cpu_targets
from ops.test_quantize import FORMATS, decoded, quantized

DEVICE = cpu_targets()[-1].open(threads=2)
# Weights as they occur and as they should not: denormals, one huge outlier, constants, zeros.
SPREADS = ["normal", "heavy", "denormal", "outlier", "constant", "constant rows",
           "constant columns", "extremes", "sparse", "tiny and large"]  # fmt: skip


def draw(spread: str, shape: tuple[int, int], seed: int) -> F32:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape)
    if spread == "heavy":
        w = rng.standard_cauchy(shape).clip(-1e4, 1e4)
    elif spread == "denormal":
        w *= 1e-40
    elif spread == "outlier":
        w[rng.integers(shape[0]), rng.integers(shape[1])] = -2e5
    elif spread == "constant":
        w[:] = w[0, 0]
    elif spread == "constant rows":
        w[:] = w[:, :1]
    elif spread == "constant columns":
        w[:] = w[:1]
    elif spread == "extremes":
        w = np.sign(w) * 3e5
    elif spread == "sparse":
        w *= rng.random(shape) < 0.05
    elif spread == "tiny and large":
        w *= 10.0 ** rng.integers(-30, 5, shape)
    return np.asarray(w, np.float32)


def unpacked(parts: dict[str, Any], columns: int) -> F64:
    """The weights out of codes and scales as docs/weights.md describes them."""
    q = parts["q"]
    if parts["dtype"] == "int4":
        codes = np.stack([q & 15, q >> 4], axis=2).reshape(len(q), -1).astype(np.float64) - 8
        scale = parts["scale"].view(np.float16).astype(np.float64)
        return np.asarray((codes * np.repeat(scale, 32, axis=1))[:, :columns])
    codes = q.view(np.int8).astype(np.float64) if parts["dtype"] == "int8" else q + 0.5
    w = codes * parts["out_scale"][:, None].astype(np.float64) * parts["in_scale"]
    if parts["dtype"] == "mm8":
        w = w + parts["out_offset"][:, None] + parts["in_offset"]
    return np.asarray(w)


def check_int8(w: F64, parts: dict[str, Any]) -> None:
    """Every code is the nearest one under scales that clip nothing, and the scale of a row is the
    factor that fits its codes best.
    """
    q, a = parts["q"].view(np.int8).astype(np.float64), parts["in_scale"].astype(np.float64)
    over_a = np.divide(w, a, out=np.zeros_like(w), where=np.abs(w) > 1e-36)
    largest = np.abs(over_a).max(axis=1, keepdims=True)
    exact = 127 * np.divide(over_a, largest, out=np.zeros_like(w), where=largest > 0)
    assert np.abs(q - exact).max() <= 0.5 + 1e-4
    fit = np.sum(q * a * w, axis=1) / np.maximum(np.sum((q * a) ** 2, axis=1), 1e-300)
    np.testing.assert_allclose(parts["out_scale"], fit, rtol=1e-4, atol=1e-36)


@pytest.mark.parametrize("want", FORMATS)
@settings(max_examples=60, deadline=None)
@given(
    spread=st.sampled_from(SPREADS),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 130)),
    seed=st.integers(0, 2**20),
)
def test_any_weights(want: str, spread: str, shape: tuple[int, int], seed: int) -> None:
    w = draw(spread, shape, seed)
    held = quantized(DEVICE, w, want)
    parts, values = held.parts(), decoded(held)
    assert parts["q"].shape == (shape[0], -(-shape[1] // 32) * 16 if want == "int4" else shape[1])
    assert np.isfinite(values).all()
    top = np.abs(w).max()
    np.testing.assert_allclose(
        values, unpacked(parts, shape[1]), rtol=1e-5, atol=1e-6 * top + 1e-44
    )
    # A step of each format where nothing is gained from the scales: half of 2/14, 2/256 of the
    # largest weight, and what clipping costs int4. int8 makes the sum of squares small: at most
    # that of half steps of 1/127 of each row's largest weight. Single weights may err by more.
    smallest = {"int8": 2e-38, "mm8": 2e-38, "int4": 5e-7}[want]
    if want == "int8":
        check_int8(w.astype(np.float64), parts)
        rows = np.linalg.norm(np.abs(w).max(axis=1).astype(np.float64))
        most = 0.5 / 127 * np.sqrt(shape[1]) * rows + smallest * np.sqrt(w.size)
        assert np.linalg.norm(values - w) <= 1.001 * most
    else:
        step = {"mm8": 0.5 * 4 / 256, "int4": 0.18}[want]
        assert np.abs(values - w).max() <= 1.05 * step * top + smallest
    if want == "int8":
        assert parts["q"].view(np.int8).min() >= -127
    if want == "int4":  # a group answers for itself alone
        groups = np.pad(w, ((0, 0), (0, -shape[1] % 32))).reshape(shape[0], -1, 32)
        errors = np.pad(values - w, ((0, 0), (0, -shape[1] % 32))).reshape(groups.shape)
        assert (np.abs(errors).max(2) <= 0.19 * np.abs(groups).max(2) + smallest).all()


@pytest.mark.parametrize("want", FORMATS)
@pytest.mark.parametrize("use", ["linear", "ffn_value"])
@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(st.integers(1, 70), st.integers(1, 130)), seed=st.integers(0, 2**20))
def test_layouts_hold_the_same_weights(
    want: str, use: str, shape: tuple[int, int], seed: int
) -> None:
    w = draw("normal", shape, seed)
    np.testing.assert_array_equal(
        quantized(DEVICE, w, want, use=use).decoded(), quantized(DEVICE, w, want).decoded()
    )


@pytest.mark.parametrize(("want", "most"), [("int4", 5 * 65504), ("int8", 1e36), ("mm8", 1e36)])
def test_weights_beyond_a_format_are_refused(want: str, most: float) -> None:
    w = np.ones((4, 40), np.float32)
    w[1, 2] = -most
    assert np.isfinite(decoded(quantized(DEVICE, w, want))).all()
    w[1, 2] = -1.01 * most
    with pytest.raises(Exception, match=r"test\.weight.*beyond"):
        quantized(DEVICE, w, want)
