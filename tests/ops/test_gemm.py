"""Kernels of many rows on memory of exactly the size they ask for, AMX in software among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ops.harness import (
    AMX,
    AVX512,
    DOTS,
    EMULATED,
    F32,
    F64,
    FEW_ROWS,
    MORE_ROWS,
    WORDS,
    Target,
    assert_close,
    code_rounding,
    cpu_targets,
    digits,
    load_ops,
    rounding,
)
from ops.test_linear import EPS, bits, check, product, values, weight

TARGETS = cpu_targets()
each_target = pytest.mark.parametrize("target", TARGETS, ids=str)
PRECISIONS = ["auto", "exact", "fast", "w8a8"]
# Tiles of 16 rows and of 32 or 64 inputs, panels of 32 outputs, blocks of 256, 512 or 1024 inputs,
# bands of 1024 or 2048, groups of 256 to 1024 outputs, chunks of 256 rows: one less, as many, one
# more.
ROWS = [1, 15, 16, 17, 31, 33, 47, 255, 257, 299]
SHAPES = [(1, 1), (15, 31), (17, 33), (33, 63), (95, 65), (129, 255), (31, 513), (257, 131)]
SHAPES += [(33, 2049), (289, 1025)]


@pytest.fixture(autouse=True)
def tiles_are_used_rightly() -> Any:
    """No instruction that the processor would refuse; no thread keeps the registers."""
    before = load_ops().amx_counters()
    yield
    after = load_ops().amx_counters()
    assert after.get("faults") == before.get("faults")
    assert after.get("configured", 0) == 0


def gemm(target: Target, precision: str, x: F32, w: NDArray[Any], dtype: str, **more: Any) -> F32:
    """Also with W input-major, which must give the same bits but for few rows."""
    y, narrow = load_ops().gemm(target.isa, precision, x, w, dtype, **more)
    rows = x.shape[0]
    if dtype != "int4":
        turned = np.ascontiguousarray(w.T)
        again, _ = load_ops().gemm(target.isa, precision, x, turned, dtype, True, range=32, **more)
        few = {"bf16": range(7, 16), "int8": (7, 8), "mm8": (7, 8)}
        if target.isa in AMX and rows in few.get(dtype, ()):
            assert_close(again, y, 1e-5)
        else:
            np.testing.assert_array_equal(y, again)
    codes = digits(target, dtype, rows, precision) > 0
    others = dtype not in ("int8", "mm8") and rounding(target, dtype, rows, precision) > 0
    assert narrow == (codes or others)
    return np.asarray(y)


@each_target
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_floats(target: Target, dtype: str, precision: str) -> None:
    rng = np.random.default_rng(1)
    for index, (out, inner) in enumerate(SHAPES):
        w = bits(rng.standard_normal((out, inner)).astype(np.float32), dtype)
        for rows in ROWS[index % 2 :: 2]:
            x = rng.standard_normal((rows, inner)).astype(np.float32)
            y = gemm(target, precision, x, w, dtype)
            check(y, x, values(w, dtype), error=rounding(target, dtype, rows, precision))


@each_target
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", ["int8", "mm8"])
def test_codes(target: Target, dtype: str, precision: str) -> None:
    """Codes at random and at their extremes, inputs at random and of one value."""
    rng = np.random.default_rng(2)
    least, most, zero = (-127, 127, 0.0) if dtype == "int8" else (0, 255, -0.5)
    for index, (out, inner) in enumerate(SHAPES):
        q = rng.integers(least, most, (out, inner), endpoint=True)
        q[0], q[-1] = least, most
        in_scale = (rng.random(inner) + 0.5).astype(np.float32)
        out_scale = (rng.random(out) + 0.5).astype(np.float32)
        w = (q - zero) * out_scale.astype(np.float64)[:, None] * in_scale
        for rows in ROWS[index % 2 :: 2]:
            x = rng.standard_normal((rows, inner)).astype(np.float32)
            x[0], x[-1] = 7, -3e4
            y = gemm(
                target, precision, x, q.astype(np.int8 if dtype == "int8" else np.uint8), dtype,
                in_scale=in_scale, out_scale=out_scale, zero=zero,
            )  # fmt: skip
            tolerance = EPS * max(4, 1.2 * np.sqrt(inner))  # sums of one sign: as with outliers
            scale = np.abs(x).astype(np.float64) @ np.abs(w).T
            if used := digits(target, dtype, rows, precision):
                middle = np.abs(q - (0 if dtype == "int8" else 128)).sum(axis=1) * out_scale
                step = code_rounding(x.astype(np.float64) * in_scale, used)
                scale += step * middle / tolerance
            assert_close(y, x.astype(np.float64) @ w.T, tolerance, scale=scale)


@pytest.mark.parametrize("target", [t for t in TARGETS if t.isa in AMX], ids=str)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize(("rows", "out", "inner"), [(129, 1094, 2080), (140, 600, 4128)])
def test_wide_groups(target: Target, dtype: str, rows: int, out: int, inner: int) -> None:
    """x that leaves L2 between two groups of outputs, of which there is more than one."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((rows, inner)).astype(np.float32)
    if dtype == "int8":
        q = rng.integers(-127, 127, (out, inner), endpoint=True).astype(np.int8)
        y = gemm(target, "fast", x, q, dtype)
        step = code_rounding(x.astype(np.float64), digits(target, dtype, rows, "fast"))
        check(y, x, q.astype(np.float64), more=step * np.abs(q.astype(np.float64)).sum(axis=1))
    elif dtype == "int4":
        q, scales, w = int4_codes(rng, out, inner)
        check(
            int4_product(target, "fast", x, q, scales),
            x,
            w,
            error=rounding(target, dtype, rows, "fast"),
        )
    else:
        w = bits(rng.standard_normal((out, inner)).astype(np.float32), dtype)
        y = gemm(target, "fast", x, w, dtype)
        check(y, x, values(w, dtype), error=rounding(target, dtype, rows, "fast"))


def strips(codes: NDArray[np.uint8], scales: NDArray[np.float16]) -> tuple[Any, Any]:
    """Packed codes [out, in / 2] and scales [out, groups] in the order of the kernels."""
    out, groups = scales.shape
    full = -(-out // 16) * 16
    c = np.zeros((full, codes.shape[1]), np.uint8)
    s = np.zeros((full, groups), np.float16)
    c[:out], s[:out] = codes, scales
    lines = c.reshape(full // 16, 16, groups, 4, 4).transpose(0, 2, 3, 1, 4)
    by_group = s.reshape(full // 16, 16, groups).transpose(0, 2, 1)
    return np.ascontiguousarray(lines).reshape(full, -1), np.ascontiguousarray(by_group)


@each_target
@pytest.mark.parametrize("more_rows", [-1, 0, 1, 5])
@pytest.mark.parametrize("dtype", FEW_ROWS)
def test_few_rows_are_exact(target: Target, dtype: str, more_rows: int) -> None:
    """Whatever precision is asked for, and in the same bits."""
    rows = FEW_ROWS[dtype] + more_rows
    rng = np.random.default_rng(rows)
    for out, inner in ((17, 33), (95, 65), (31, 513), (33, 2049)):
        x = rng.standard_normal((rows, inner)).astype(np.float32)
        if dtype == "int4":
            q, scales, w = int4_codes(rng, out, inner // 32 * 32)
            x = x[:, : q.shape[1]]
            got = [int4_product(target, precision, x, q, scales) for precision in PRECISIONS]
            check(got[0], x, w, error=rounding(target, dtype, rows))
            for other in got[1:]:
                np.testing.assert_array_equal(other, got[0])
            continue
        if dtype == "bf16":
            w = bits(rng.standard_normal((out, inner)).astype(np.float32), dtype)
            decoded, zero = values(w, dtype), 0.0
            error, more = rounding(target, dtype, rows), None
        else:
            least, most, zero = (-127, 127, 0.0) if dtype == "int8" else (0, 255, -0.5)
            codes = rng.integers(least, most, (out, inner), endpoint=True)
            w = codes.astype(np.int8 if dtype == "int8" else np.uint8)
            decoded, error, more = codes - zero, 0.0, None
            if used := digits(target, dtype, rows):
                middle = np.abs(codes - (0 if dtype == "int8" else 128)).sum(axis=1)
                more = code_rounding(x, used) * middle
        got = [gemm(target, precision, x, w, dtype, zero=zero) for precision in PRECISIONS]
        check(got[0], x, decoded, error=error, more=more)
        for other in got[1:]:
            np.testing.assert_array_equal(other, got[0])


AHEAD = [(4096, 2048), (4096, 0), (0, 2048), (0, 0)]  # bytes into L2 and into L1


@each_target
@pytest.mark.parametrize("out", [127, 128, 200, 333])
def test_streams_of_int4_give_the_bits_of_one(target: Target, out: int) -> None:
    """Two of 128 outputs and more, eight of as many; what is left follows, part of a strip last."""
    rng = np.random.default_rng(out)
    inner = 2048
    q = rng.integers(0, 15, (out, inner), endpoint=True).astype(np.uint8)
    scales = (rng.random((out, inner // 32)) + 0.5).astype(np.float16)
    held, by_group = strips((q[:, 0::2] | q[:, 1::2] << 4).astype(np.uint8), scales)
    x = rng.standard_normal(inner).astype(np.float32)

    def row(ahead: tuple[int, int], streams: tuple[int, int]) -> F32:
        y = load_ops().gemv_row(target.isa, x, held, "int4", out, ahead, by_group, streams)
        return np.asarray(y)

    one = row(AHEAD[0], (1, 0))
    w = (q.astype(np.float64) - 8) * np.repeat(scales.astype(np.float64), 32, axis=1)
    check(one[None, :], x[None, :], w)
    for ahead in AHEAD:
        for streams in ((1, 0), (2, 0), (2, 2048), (8, 0), (8, 512)):
            np.testing.assert_array_equal(row(ahead, streams), one)
    x[7] = np.inf  # no fixed point
    one = row(AHEAD[0], (1, 0))
    for ahead in AHEAD:
        for streams in ((2, 2048), (8, 512)):
            np.testing.assert_array_equal(row(ahead, streams), one)


def row_weights(
    rng: np.random.Generator, dtype: str, out: int, inner: int
) -> tuple[NDArray[Any], F64]:
    """Weights as gemv_row() takes them, and what they stand for; codes without scales."""
    if dtype not in ("int8", "mm8"):
        w = bits(rng.standard_normal((out, inner)).astype(np.float32), dtype)
        return w, values(w, dtype)
    least, most = (-127, 127) if dtype == "int8" else (0, 255)
    codes = rng.integers(least, most, (out, inner), endpoint=True)
    return codes.astype(np.int8 if dtype == "int8" else np.uint8), codes.astype(np.float64)


@each_target
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8", "mm8"])
@pytest.mark.parametrize("inner", [300, 512, 801, 4096, 4133, 9000])
def test_streams_give_the_bits_of_one(target: Target, dtype: str, inner: int) -> None:
    """Whatever the outputs of a thread: of 32 each of four has 8, of 43 some are left over."""
    rng = np.random.default_rng(inner)
    out = 171
    x = rng.standard_normal(inner).astype(np.float32)
    w, decoded = row_weights(rng, dtype, out, inner)

    def row(streams: tuple[int, int], outputs: int) -> F32:
        y = load_ops().gemv_row(
            target.isa, x, w, dtype, out, (4096, 0), streams=streams, range=outputs
        )
        return np.asarray(y)

    four = row((4, 0), out)
    check(four[None, :], x[None, :], decoded)
    for streams in ((4, 0), (4, 384), (8, 0), (8, 1024)):
        for outputs in (32, 64, 128, out):
            np.testing.assert_array_equal(row(streams, outputs), four)
    if inner <= 4096:  # longer rows are taken in fours or in pieces otherwise
        np.testing.assert_array_equal(row((1, 0), out), four)
    x[7] = np.inf
    for streams in ((4, 0), (8, 1024)):
        assert not np.isfinite(row(streams, out)).all()


@each_target
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8", "mm8"])
def test_a_row_has_the_same_bits_whatever_is_asked_for_ahead(target: Target, dtype: str) -> None:
    """Rows of 511 and 512 inputs, of one segment and of several, whose last is a piece."""
    rng = np.random.default_rng(11)
    for out, inner in ((35, 65), (33, 511), (33, 512), (4, 4096), (33, 4100), (3, 12345)):
        x = rng.standard_normal(inner).astype(np.float32)
        w, decoded = row_weights(rng, dtype, out, inner)
        got = [load_ops().gemv_row(target.isa, x, w, dtype, out, ahead) for ahead in AHEAD]
        check(got[0][None, :], x[None, :], decoded)
        for other in got[1:]:
            np.testing.assert_array_equal(other, got[0])
        x[7] = np.inf  # codes are multiplied as floats then
        got = [load_ops().gemv_row(target.isa, x, w, dtype, out, ahead) for ahead in AHEAD]
        assert not np.isfinite(got[0]).all()
        for other in got[1:]:
            np.testing.assert_array_equal(other, got[0])


def int4_product(
    target: Target, precision: str, x: F32, q: NDArray[np.uint8], scales: NDArray[np.float16]
) -> F32:
    """Codes [out, in], scales [out, groups]; also input-major, which must give the same bits where
    it takes the same kernel."""
    held, by_group = strips((q[:, 0::2] | q[:, 1::2] << 4).astype(np.uint8), scales)
    y = gemm(target, precision, x, held, "int4", group_scale=by_group, out=len(q))
    if len(q) % 2 == 0:  # so that a row of the test's array holds as many outputs
        t, turned = q.T, np.ascontiguousarray(scales.T)
        both = np.ascontiguousarray(t[:, 0::2] | t[:, 1::2] << 4)
        again, _ = load_ops().gemm(target.isa, precision, x, both, "int4", True, group_scale=turned)
        if target.isa in AMX and (5 <= len(x) <= 8 or 16 < len(x) <= MORE_ROWS):
            w = (q.astype(np.float64) - 8) * np.repeat(scales.astype(np.float64), 32, axis=1)
            check(again, x, w, error=rounding(target, "int4", len(x), precision))
        else:
            np.testing.assert_array_equal(again, y)
    return y


def int4_codes(
    rng: np.random.Generator, out: int, inner: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16], F64]:
    """Codes, scales and what they stand for."""
    q = rng.integers(0, 15, (out, inner), endpoint=True).astype(np.uint8)
    scales = (rng.random((out, inner // 32)) + 0.5).astype(np.float16)
    w = (q.astype(np.float64) - 8) * np.repeat(scales.astype(np.float64), 32, axis=1)
    return q, scales, w


@each_target
@pytest.mark.parametrize("precision", PRECISIONS)
def test_int4(target: Target, precision: str) -> None:
    rng = np.random.default_rng(3)
    for out, inner in ((1, 32), (33, 64), (66, 288), (18, 544), (300, 1056), (530, 96)):
        q, scales, w = int4_codes(rng, out, inner)
        for rows in (4, 5, 6, 8, 9, *ROWS):
            x = rng.standard_normal((rows, inner)).astype(np.float32)
            y = int4_product(target, precision, x, q, scales)
            more = None
            if used := digits(target, "int4", rows, precision):
                more = code_rounding(x, used) * np.abs(w).sum(axis=1)
            error = 0.0 if used else rounding(target, "int4", rows, precision)
            check(y, x, w, error=error, more=more)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int4"])
@pytest.mark.parametrize("isa", [*AMX, DOTS])
def test_auto_is_exact_or_fast(isa: str, dtype: str) -> None:
    """Small matrices are exact, which is fp32 without tiles; the others are fast."""
    if isa not in [t.isa for t in TARGETS]:
        pytest.skip("does not run here")
    rng = np.random.default_rng(10)
    for out, inner in ((512, 512), (511, 512), (513, 480)):
        x = rng.standard_normal((20, inner)).astype(np.float32)
        w = rng.integers(0, 255, (out, inner // 2)).astype(np.uint8)
        w, ones = strips(w, np.ones((out, inner // 32), np.float16))
        more: dict[str, Any] = {"group_scale": ones, "out": out}
        if dtype != "int4":
            w, more = bits(rng.standard_normal((out, inner)).astype(np.float32), dtype), {}

        same = "exact" if min(out, inner) < 512 else "fast"

        def run(precision: str, means: str) -> F32:
            y, narrow = load_ops().gemm(isa, precision, x, w, dtype, **more)  # noqa: B023
            assert narrow == (isa in AMX or means == "fast")
            return np.asarray(y)

        np.testing.assert_array_equal(run("auto", same), run(same, same))
        assert (run("exact", "exact") != run("fast", "fast")).any()


@each_target
def test_a_sum_of_the_largest_products_stays_in_32_bits(target: Target) -> None:
    inner = 65536
    x = np.ones((16, inner), np.float32)
    for dtype, code in (("int8", -127), ("mm8", 255), ("mm8", 0)):
        w = np.full((32, inner), code, np.int8 if dtype == "int8" else np.uint8)
        for precision in PRECISIONS:
            y, _ = load_ops().gemm(target.isa, precision, x, w, dtype)
            np.testing.assert_allclose(y, float(code) * inner, rtol=1e-5)
    w = np.ones((32, inner + 1), np.int8)  # one more is computed in fp32, or in blocks
    y, narrow = load_ops().gemm(target.isa, "w8a8", np.ones((16, inner + 1), np.float32), w, "int8")
    assert narrow == (target.isa in WORDS)
    np.testing.assert_allclose(y, inner + 1, rtol=1e-5)


@each_target
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_bad_row_stays_alone(target: Target, precision: str, bad: float) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((40, 100)).astype(np.float32)
    x[9, 70] = bad
    for dtype, code in (("fp16", np.float16), ("bf16", np.uint16), ("int8", np.int8)):
        w = rng.integers(1, 100, (50, 100)).astype(code)
        y, _ = load_ops().gemm(target.isa, precision, x, w, dtype)
        assert not np.isfinite(y[9]).any()
        assert np.isfinite(np.delete(y, 9, axis=0)).all()


@each_target
@pytest.mark.parametrize("precision", PRECISIONS)
def test_small_and_large_inputs(target: Target, precision: str) -> None:
    """Rows of denormals and of almost the largest number: finite, within what is flushed."""
    w = np.full((20, 64), 3, np.int8)
    for value in (0.0, 1e-42, 1e-31, 1e-29, 1e36):
        x = np.full((16, 64), value, np.float32)
        y, _ = load_ops().gemm(target.isa, precision, x, w, "int8")
        np.testing.assert_allclose(y, 3.0 * 64 * x[0, 0], rtol=0.01, atol=3 * 64 * 2.0**-100)


def test_fp32_weights_are_computed_as_avx512_does() -> None:
    """By default, wherever they stand, and with tiles at hand."""
    isas = [t.isa for t in TARGETS]
    vectors = next((isa for isa in isas if isa in AVX512), None)
    if vectors is None or EMULATED not in isas:
        pytest.skip("nothing emulates AMX here")
    rng = np.random.default_rng(5)
    w, x = (rng.standard_normal((n, 300)).astype(np.float32) for n in (70, 40))
    expected, _ = load_ops().gemm(vectors, "auto", x, w, "fp32")
    y, narrow = load_ops().gemm(EMULATED, "auto", x, w, "fp32")
    assert not narrow
    np.testing.assert_array_equal(y, expected)


@each_target
@pytest.mark.parametrize("precision", PRECISIONS)
def test_group_equals_its_parts(target: Target, precision: str) -> None:
    """Products on one input whose packed forms differ, in one dispatch."""
    rng = np.random.default_rng(6)
    device = target.open(threads=3, precision=precision)
    plain = rng.standard_normal((70, 130)).astype(np.float32)
    kinds = ["fp32", "fp16", "bf16", "int8", "mm8", "int4", "bf16", "int8"]
    held = [weight(device, plain, "fp32", want=kind) for kind in kinds]
    x = rng.standard_normal((45, 130)).astype(np.float32)
    together = device.linears([load_ops().Product(x, w, act="tanh") for w in held])
    for w, y in zip(held, together, strict=True):
        np.testing.assert_array_equal(y, product(device, x, w, act="tanh"))


@each_target
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("want", ["bf16", "int8"])
@pytest.mark.parametrize("act", ["none", "relu_squared", "tanh"])
def test_epilogue(target: Target, precision: str, want: str, act: str) -> None:
    rng = np.random.default_rng(7)
    out, inner, rows = 71, 45, 37
    w = (rng.integers(-127, 127, (out, inner)) / 128).astype(np.float32)
    x = rng.standard_normal((rows, inner)).astype(np.float32)
    bias = rng.standard_normal(out).astype(np.float32)
    gate, add, into = (rng.standard_normal((rows, out)).astype(np.float32) for _ in range(3))
    device = target.open(padding=3, threads=2, precision=precision)
    held = weight(device, w, "fp32", want=want)
    plain = product(device, x, held).astype(np.float64)
    y = product(device, x, held, act=act, bias=bias, gate=gate, add=add, into=into)
    p = plain + bias
    p = {"none": p, "relu_squared": np.maximum(p, 0) ** 2, "tanh": np.tanh(p)}[act]
    scale = 10.0 if act == "tanh" else 10.0 + np.abs(p * gate)
    assert_close(y, p * gate + add + into, 2e-6, scale=scale)


@each_target
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("want", ["fp16", "bf16", "int8", "mm8", "int4"])
def test_threads_change_nothing(target: Target, precision: str, want: str) -> None:
    rng = np.random.default_rng(8)
    w = rng.standard_normal((517, 301)).astype(np.float32)
    x = rng.standard_normal((70, 301)).astype(np.float32)
    results = []
    for threads in (1, 2, 3, 7):
        device = target.open(threads=threads, precision=precision)
        results.append(product(device, x, weight(device, w, "fp32", want=want)))
    for y in results[1:]:
        np.testing.assert_array_equal(y, results[0])


def test_tiles_were_multiplied() -> None:
    if not any(t.isa == EMULATED for t in TARGETS):
        pytest.skip("nothing emulates AMX here")
    before = load_ops().amx_counters()["products"]
    x = np.ones((32, 64), np.float32)
    load_ops().gemm(EMULATED, "fast", x, np.ones((32, 64), np.int8), "int8")
    assert load_ops().amx_counters()["products"] - before == 2 * 2 * 2  # two bytes of x


FEATURES = 1 << 22 | 1 << 24 | 1 << 25  # CPUID 7.0 EDX: AMX-BF16, AMX-TILE, AMX-INT8
BF16 = 1 << 5  # CPUID 7.1 EAX: AVX512-BF16
STATES = 1 << 17 | 1 << 18  # XCR0: XTILECFG, XTILEDATA


@pytest.mark.parametrize(
    ("features", "bf16", "states", "refusal", "why"),
    [
        (FEATURES, BF16, STATES, 0, ""),
        (FEATURES ^ 1 << 22, BF16, STATES, 0, "AMX-BF16"),
        (FEATURES ^ 1 << 24, BF16, STATES, 0, "AMX-TILE"),
        (FEATURES ^ 1 << 25, BF16, STATES, 0, "AMX-INT8"),
        (FEATURES, 0, STATES, 0, "AVX512-BF16"),
        (FEATURES, BF16, STATES ^ 1 << 18, 0, "XCR0"),
        (FEATURES, BF16, STATES ^ 1 << 17, 0, "XCR0"),
        (FEATURES, BF16, STATES, 1, "kernel refused: Operation not permitted"),
        (FEATURES, BF16, STATES, 22, "kernel refused: Invalid argument"),
    ],
)
def test_why_no_amx(features: int, bf16: int, states: int, refusal: int, why: str) -> None:
    found = load_ops().why_no_amx(features, bf16, states, refusal)
    assert why in found
    assert bool(found) == bool(why)


def test_asking_for_amx_without_it_says_why() -> None:
    isas = dict(load_ops().isas())
    if "amx" not in isas or isas["amx"]:
        pytest.skip("AMX runs here, or is not built")
    with pytest.raises(Exception, match="'amx' cannot run on this machine, which would need "):
        load_ops().Device("cpu", isa="amx")
    assert AMX[0] not in [t.isa for t in TARGETS]


def test_bound_of_the_oracle() -> None:
    """The bounds above are those of the formats, not those of the kernel: numpy rounds alike."""
    rng = np.random.default_rng(9)
    x: F64 = rng.standard_normal((50, 300)) ** 3
    step = np.abs(x).max(axis=1, keepdims=True) / (127 * 256)
    assert (np.abs(np.rint(x / step) * step - x) <= code_rounding(x, 2)).all()
