"""Row-wise ops against numpy float64, on every device and ISA."""

from __future__ import annotations

import numpy as np
import pytest
from ops.harness import F32, Target, assert_close, f64, split_rows, targets
from reference import ops as oracle

TARGETS = targets()
SHAPES = [(1, 1), (1, 768), (3, 5), (63, 64), (65, 100), (2, 1027), (5, 2560)]
RAGGED = [[1], [65], [3, 1, 1, 63], [1] * 7]

pytestmark = pytest.mark.parametrize("target", TARGETS, ids=str)


def normal(rng: np.random.Generator, *shape: int) -> F32:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(("T", "C"), SHAPES)
def test_layer_norm(target: Target, T: int, C: int, padding: int) -> None:
    rng = np.random.default_rng(T * C)
    x, weight, bias = normal(rng, T, C) * 3 + 1, normal(rng, C), normal(rng, C)
    y = target.open(padding=padding).layer_norm(x, weight, bias, 1e-5)
    assert_close(y, oracle.layer_norm(*f64(x, weight, bias), 1e-5), 1e-6)


@pytest.mark.parametrize(
    ("offset", "scale"), [(1e4, 1.0), (-3e5, 1e2), (0.0, 1e-12), (0.0, 1e15), (7.0, 0.0)]
)
def test_layer_norm_of_hard_rows(target: Target, offset: float, scale: float) -> None:
    """A mean far above the deviation, tiny and huge deviations, constant rows."""
    rng = np.random.default_rng(1)
    C = 2048
    x = (offset + scale * rng.standard_normal((4, C))).astype(np.float32)
    weight, bias = np.ones(C, np.float32), np.zeros(C, np.float32)
    y = target.open().layer_norm(x, weight, bias, 1e-5)
    assert_close(y, oracle.layer_norm(*f64(x, weight, bias), 1e-5), 2e-6, scale=1.0)


def test_layer_norm_with_an_outlier(target: Target) -> None:
    x = np.full((2, 1000), 0.25, np.float32)
    x[:, 17] = 3e4
    one, zero = np.ones(1000, np.float32), np.zeros(1000, np.float32)
    y = target.open().layer_norm(x, one, zero, 1e-5)
    assert_close(y, oracle.layer_norm(*f64(x, one, zero), 1e-5), 1e-6)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("rows", RAGGED, ids=str)
def test_shift_delta(target: Target, rows: list[int], padding: int) -> None:
    rng = np.random.default_rng(2)
    C = 67
    x, prev = normal(rng, sum(rows), C), normal(rng, len(rows), C)
    dx, new = target.open(padding=padding).shift_delta(x, prev, rows)
    parts = [
        oracle.shift_delta(*f64(part, before))
        for part, before in zip(split_rows(x, rows), prev, strict=True)
    ]
    assert_close(dx, np.concatenate([d for d, _ in parts]), 1e-7)
    np.testing.assert_array_equal(new, np.stack([last for _, last in parts]).astype(np.float32))


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("rows", RAGGED, ids=str)
def test_shift_mix_is_lerp_of_shift_delta(target: Target, rows: list[int], groups: int) -> None:
    rng = np.random.default_rng(3)
    C = 101
    x, prev, mu = normal(rng, sum(rows), C), normal(rng, len(rows), C), normal(rng, groups, C)
    device = target.open(padding=1)
    ys, new = device.shift_mix(x, prev, mu, rows)
    dx, new_delta = device.shift_delta(x, prev, rows)
    np.testing.assert_array_equal(new, new_delta)
    expected = [
        np.concatenate(
            [
                oracle.lerp(part, oracle.shift_delta(part, before)[0], m)
                for part, before in zip(split_rows(*f64(x), rows), f64(prev)[0], strict=True)
            ]
        )
        for m in f64(mu)[0]
    ]
    assert len(ys) == groups
    for y, composed, e in zip(ys, device.lerp(x, dx, mu), expected, strict=True):
        assert_close(y, e, 3e-7)
        assert_close(composed, e, 3e-7)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(("T", "C"), SHAPES)
def test_add_and_multiply(target: Target, T: int, C: int, padding: int) -> None:
    rng = np.random.default_rng(4)
    a, b = normal(rng, T, C), normal(rng, T, C)
    device = target.open(padding=padding)
    np.testing.assert_array_equal(device.add(a, b), a + b)
    np.testing.assert_array_equal(device.multiply(a, b), a * b)


@pytest.mark.parametrize("wanted", [[0], [4], [0, 2, 64], list(range(65))], ids=len)
def test_select_rows(target: Target, wanted: list[int]) -> None:
    x = normal(np.random.default_rng(5), 65, 33)
    np.testing.assert_array_equal(target.open(padding=2).select_rows(x, wanted), x[wanted])


def bf16_bits(x: F32) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """Round to nearest even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("C", [1, 7, 64, 770])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_embed(target: Target, C: int, dtype: str) -> None:
    rng = np.random.default_rng(6)
    table = normal(rng, 50, C)
    tokens = [49, 0, 7, 7, 13]
    if dtype == "bf16":
        stored: np.ndarray = bf16_bits(table)
        table = (stored.astype(np.uint32) << 16).view(np.float32)
    elif dtype == "fp16":
        stored = table.astype(np.float16)
        table = stored.astype(np.float32)
    else:
        stored = table
    np.testing.assert_array_equal(target.open().embed(tokens, stored, dtype), table[tokens])


def test_embed_takes_vectors_instead_of_tokens(target: Target) -> None:
    x = normal(np.random.default_rng(7), 9, 37)
    np.testing.assert_array_equal(target.open().embed_inputs(x), x)


def test_fp16_gather_is_exact_for_every_half(target: Target) -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(256, 256)
    finite = np.where(np.isfinite(halves), halves, np.float16(0))
    y = target.open().embed(list(range(256)), finite, "fp16")
    np.testing.assert_array_equal(y, finite.astype(np.float32))


def test_nan_stays_in_its_row(target: Target) -> None:
    rng = np.random.default_rng(8)
    x = normal(rng, 4, 50)
    x[1, 20] = np.nan
    y = target.open().layer_norm(x, np.ones(50), np.zeros(50), 1e-5)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2, 3]]).all()


def test_wrong_sizes_are_refused(target: Target) -> None:
    device = target.open()
    x = np.zeros((2, 8), np.float32)
    with pytest.raises(RuntimeError, match=r"\[layer_norm\] weight has 7 elements where 8"):
        device.layer_norm(x, np.ones(7), np.zeros(8), 1e-5)
    with pytest.raises(RuntimeError, match=r"\[shift_delta\] the state slot has 5 floats where 8"):
        device.shift_delta(x, np.zeros((1, 5)))
    with pytest.raises(RuntimeError, match=r"\[add\] b is \[2, 9\] where \[2, 8\]"):
        device.add(x, np.zeros((2, 9)))
