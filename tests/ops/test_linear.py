"""Products y = act(x W^T + bias) * gate + add against numpy float64, on every device and ISA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ops.harness import (
    AMX,
    F32,
    F64,
    Target,
    assert_close,
    cpu_targets,
    load_ops,
    rounding,
    targets,
)

pytestmark = pytest.mark.parametrize("target", targets(), ids=str)

FLOATS = ["fp32", "fp16", "bf16"]
# Decode, batched decode, the border to matrix-matrix kernels, prefill and its chunks; of a list in
# this order the shim takes every fourth.
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 23, 33, 64, 255, 257, 530, 31]
SHAPES = [(1, 1), (3, 2), (7, 33), (33, 65), (64, 64), (130, 31), (67, 257), (96, 768), (37, 4200)]
EPS = float(np.finfo(np.float32).eps)


def bits(w: F32, dtype: str) -> NDArray[Any]:
    """The elements as a file holds them."""
    if dtype == "fp32":
        return w
    if dtype == "fp16":
        return w.astype(np.float16)
    u = w.view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def values(stored: NDArray[Any], dtype: str) -> F64:
    """What those elements are worth."""
    if dtype == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def weight(device: Any, stored: NDArray[Any], dtype: str, **options: Any) -> Any:
    return load_ops().Weight(device, stored, dtype, **options)


def product(device: Any, x: F32, w: Any, **options: Any) -> F32:
    (y,) = device.linears([load_ops().Product(x, w, **options)])
    return np.asarray(y)


def check(
    y: F32,
    x: F32,
    w: F64,
    *,
    outliers: bool = False,
    error: float = 0.0,
    normal: float = 0.0,
    more: F64 | None = None,
) -> None:
    """Every output within 4 eps of the sum of its terms' magnitudes, and `error` beyond that; and
    within `more` of its own.

    Where one term dwarfs the others, each of the K additions after it rounds by up to eps / 2 of
    it; as good as random, that is 1.2 sqrt(K) eps at four deviations. Denormal results are
    rounded to multiples of 2^-149; tiles take them for zero. Tensor cores align terms by the
    exponents of what they multiply: a weight below `normal`, the smallest that is not denormal,
    costs as much precision as that one.
    """
    K = x.shape[1]
    exact = x.astype(np.float64) @ w.T
    scale = np.abs(x).astype(np.float64) @ np.maximum(np.abs(w), normal).T
    tolerance = EPS * (1.2 * np.sqrt(K) if outliers else 4) + error
    least = K * 2.0**-149 / EPS
    if error > 0:
        least += K * 2.0**-126 * float(np.abs(x).max()) / error
    if more is not None:
        scale = scale + more / tolerance
    assert_close(y, exact, tolerance, scale=scale + least)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(target: Target, dtype: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[0] * shape[1])
    stored = bits(rng.standard_normal(shape).astype(np.float32), dtype)
    for padding in (0, 3):
        device = target.open(padding=padding)
        w = weight(device, stored, dtype)
        for rows in ROWS[padding % 3 :: 4] if target.on_shim else ROWS:
            x = rng.standard_normal((rows, shape[1])).astype(np.float32)
            error = rounding(target, dtype, rows)
            check(product(device, x, w), x, values(stored, dtype), error=error)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [*SHAPES, (512, 41)], ids=str)
def test_zeros_that_are_skipped(target: Target, dtype: str, shape: tuple[int, int]) -> None:
    """Behind relu^2, weights input-major: any share of zeros, all of them, none."""
    if target.device != "cpu":
        pytest.skip("only the CPU leaves weights unread")
    rng = np.random.default_rng(shape[0] + shape[1])
    stored = bits(rng.standard_normal(shape).astype(np.float32), dtype)
    device = target.open(threads=3, padding=3, skip_zeros="on")
    w = weight(device, stored, dtype, use="ffn_value", offset=dtype != "fp32")
    np.testing.assert_array_equal(w.decoded(), values(stored, dtype))
    for density in (0.0, 0.1, 0.5, 0.9, 1.0):
        for rows in (1, 2, 3, 4, 5, 7, 12, 13, 17, 40):
            x = rng.standard_normal((rows, shape[1])).astype(np.float32) ** 2
            x *= rng.random(x.shape) < density
            error = rounding(target, dtype, rows)
            check(product(device, x, w), x, values(stored, dtype), error=error)


@pytest.mark.parametrize("dtype", FLOATS)
def test_skipping_does_not_depend_on_threads(target: Target, dtype: str) -> None:
    if target.device != "cpu":
        pytest.skip("only the CPU leaves weights unread")
    rng = np.random.default_rng(8)
    stored = bits(rng.standard_normal((300, 700)).astype(np.float32), dtype)
    x = rng.standard_normal((3, 700)).astype(np.float32) * (rng.random((3, 700)) < 0.3)
    results = []
    for threads in (1, 2, 3, 20):
        device = target.open(threads=threads, skip_zeros="on")
        results.append(product(device, x, weight(device, stored, dtype, use="ffn_value")))
    for y in results[1:]:
        np.testing.assert_array_equal(y, results[0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [1, 3, 16, 64])
def test_large_inner_dimension(target: Target, dtype: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    for inner in (2560, 8192 + 7):
        stored = bits(rng.standard_normal((40, inner)).astype(np.float32), dtype)
        device = target.open(threads=2)
        x = rng.standard_normal((rows, inner)).astype(np.float32)
        y = product(device, x, weight(device, stored, dtype))
        check(y, x, values(stored, dtype), error=rounding(target, dtype, rows))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [1, 5, 32])
def test_hard_values(target: Target, dtype: str, rows: int) -> None:
    """Zeros, denormals, the largest values, one huge outlier."""
    rng = np.random.default_rng(3)
    shape = (37, 99)
    device = target.open()
    plain = rng.standard_normal(shape).astype(np.float32)
    tiny = plain * np.float32(1e-6 if dtype == "fp16" else 1e-39)
    outlier = plain.copy()
    outlier[5, 98] = 6e4
    largest = np.full(shape, 65504 if dtype == "fp16" else 3e30, np.float32)
    normal = 2.0**-14 if dtype == "fp16" and target.device != "cpu" else 0.0
    for w in (np.zeros(shape, np.float32), tiny, outlier, largest):
        stored = bits(w, dtype)
        x = rng.standard_normal((rows, shape[1])).astype(np.float32)
        x[0, 3] = 1e4
        y = product(device, x, weight(device, stored, dtype))
        error = rounding(target, dtype, rows)
        check(y, x, values(stored, dtype), outliers=True, error=error, normal=normal)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_and_infinity_pass(target: Target, dtype: str) -> None:
    device = target.open()
    w = np.ones((40, 50), np.float32)
    w[7, 3], w[35, 49] = np.inf, np.nan
    for rows in (1, 40):
        y = product(device, np.ones((rows, 50), np.float32), weight(device, bits(w, dtype), dtype))
        # Of two parts, an infinity meets the low part of x, which is 0 or of either sign.
        parts = target.isa in AMX and dtype != "fp32" and rows >= 16
        parts = parts or (target.device != "cpu" and dtype != "fp32")
        assert (~np.isfinite(y[:, 7]) if parts else np.isposinf(y[:, 7])).all()
        assert np.isnan(y[:, 35]).all()
        assert np.isfinite(np.delete(y, [7, 35], axis=1)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offset", [2, 6, 62])
def test_unaligned_weights(target: Target, dtype: str, offset: int) -> None:
    """Tensors of a mapped file start at any multiple of two bytes."""
    rng = np.random.default_rng(offset)
    stored = bits(rng.standard_normal((35, 131)).astype(np.float32), dtype)
    device = target.open()
    for rows in (1, 3, 40):
        x = rng.standard_normal((rows, 131)).astype(np.float32)
        y = product(device, x, weight(device, stored, dtype, offset=offset))
        check(y, x, values(stored, dtype), error=rounding(target, dtype, rows))


@pytest.mark.parametrize("have", FLOATS)
@pytest.mark.parametrize("want", FLOATS)
def test_conversion_at_load(target: Target, have: str, want: str) -> None:
    rng = np.random.default_rng(9)
    stored = bits(rng.standard_normal((33, 70)).astype(np.float32), have)
    converted = values(bits(values(stored, have).astype(np.float32), want), want)
    x = rng.standard_normal((3, 70)).astype(np.float32)
    device = target.open(threads=2)
    y = product(device, x, weight(device, stored, have, want=want))
    check(y, x, converted, error=rounding(target, want, len(x)))


def act64(name: str, p: F64) -> F64:
    def sigmoid(v: F64) -> F64:
        return np.asarray(1 / (1 + np.exp(-v)))

    return {
        "none": lambda: p,
        "tanh": lambda: np.tanh(p),
        "sigmoid": lambda: sigmoid(p),
        "silu": lambda: p * sigmoid(p),
        "relu_squared": lambda: np.maximum(p, 0) ** 2,
        "exp_neg_exp": lambda: np.exp(-np.exp(p)),
        "decay7": lambda: np.exp(-np.exp(-0.5) * sigmoid(p)),
        "mish": lambda: p * np.tanh(np.logaddexp(0, p)),
    }[name]()


@pytest.mark.parametrize(
    "act", ["none", "tanh", "sigmoid", "silu", "relu_squared", "exp_neg_exp", "decay7", "mish"]
)
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_epilogue(target: Target, act: str, rows: int) -> None:
    """act(x W^T + bias) * gate + add, and the same added to `into`, each operand alone and all."""
    rng = np.random.default_rng(rows)
    out, inner = 71, 45
    w = (rng.standard_normal((out, inner)) / np.sqrt(inner)).astype(np.float32)
    x = rng.standard_normal((rows, inner)).astype(np.float32)
    bias = rng.standard_normal(out).astype(np.float32)
    gate, add, into = (rng.standard_normal((rows, out)).astype(np.float32) for _ in range(3))
    for padding in (0, 3):
        device = target.open(padding=padding)
        held = weight(device, w, "fp32")
        for mask in range(16):
            options: dict[str, Any] = {"act": act}
            p = x.astype(np.float64) @ w.T.astype(np.float64)
            if mask & 1:
                options["bias"] = bias
                p = p + bias
            y64 = act64(act, p)
            if mask & 2:
                options["gate"] = gate
                y64 = y64 * gate
            if mask & 4:
                options["add"] = add
                y64 = y64 + add
            if mask & 8:
                options["into"] = into
                y64 = y64 + into
            assert_close(product(device, x, held, **options), y64, 2e-6, scale=10.0)


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_group_equals_its_parts(target: Target, rows: int) -> None:
    """Products of different shapes and dtypes in one dispatch, two of them on the same input."""
    rng = np.random.default_rng(rows)
    device = target.open(threads=3)
    shapes = [(64, 96), (64, 96), (5, 96), (200, 33), (1, 1), (32, 500)]
    group = []
    for (out, inner), dtype in zip(shapes, FLOATS * 2, strict=True):
        stored = bits(rng.standard_normal((out, inner)).astype(np.float32), dtype)
        x = rng.standard_normal((rows, inner)).astype(np.float32)
        group.append((x, weight(device, stored, dtype)))
    group.append((group[0][0], group[1][1]))
    together = device.linears([load_ops().Product(x, w) for x, w in group])
    for (x, w), y in zip(group, together, strict=True):
        if target.device == "cpu":
            np.testing.assert_array_equal(y, product(device, x, w))
        else:  # how many blocks share a sum depends on the group
            assert_close(y, product(device, x, w), 1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [1, 4, 20, 70])
def test_threads_change_nothing(target: Target, dtype: str, rows: int) -> None:
    if target not in cpu_targets():
        pytest.skip("threads are the CPU's")
    rng = np.random.default_rng(rows)
    stored = bits(rng.standard_normal((517, 301)).astype(np.float32), dtype)
    x = rng.standard_normal((rows, 301)).astype(np.float32)
    reference = None
    for threads in (1, 2, 3, 7):
        device = target.open(threads=threads)
        y = product(device, x, weight(device, stored, dtype), act="tanh")
        if reference is None:
            reference = y
        np.testing.assert_array_equal(y, reference)
