"""The quantised weight formats: their error, their exactness, their products on every ISA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ops.harness import (
    AMX,
    F32,
    F64,
    MORE_ROWS,
    Target,
    assert_close,
    code_rounding,
    cpu_targets,
    digits,
    f64,
    rounding,
    targets,
)
from ops.test_linear import EPS, bits, product, weight
from reference.files import read_safetensors

FORMATS = ["int8", "mm8", "int4"]
TARGETS = cpu_targets()
GPUS = [t for t in targets() if t.device != "cpu"]
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "v4"

each_target = pytest.mark.parametrize("target", TARGETS, ids=str)


def quantized(device: Any, w: F32, want: str, **options: Any) -> Any:
    return weight(device, w, "fp32", want=want, **options)


def decoded(held: Any) -> F64:
    return np.asarray(held.decoded(), np.float64)


def error(w: F32, want: str) -> float:
    """Root mean square error of the weights relative to the weights."""
    held = quantized(TARGETS[0].open(), w, want)
    return float(np.linalg.norm(decoded(held) - w) / np.linalg.norm(w))


def weights_and_terms(held: Any) -> tuple[F64, F64]:
    """W in float64, and the magnitudes of what a kernel adds up for each of its elements."""
    w, parts = decoded(held), held.parts()
    terms = np.abs(w)
    if parts["dtype"] == "mm8":  # codes and offsets are added apart and partly cancel
        q, a, b, aa, bb = f64(
            *(parts[n] for n in ("q", "in_scale", "out_scale", "in_offset", "out_offset"))
        )
        w = (q + 0.5) * a * b[:, None] + aa + bb[:, None]  # decoded() rounds each step to fp32
        terms = (q + 0.5) * np.abs(a) * b[:, None] + np.abs(aa) + np.abs(bb)[:, None]
    elif parts["dtype"] == "int4":  # q and -8, likewise
        blocks = np.abs(w).reshape(w.shape[0], -1, 32) if w.shape[1] % 32 == 0 else None
        terms = 16 * np.abs(w).max(axis=1, keepdims=True) + 0 * w
        if blocks is not None:
            terms = np.repeat(2.5 * blocks.max(axis=2), 32, axis=1)
    return w, terms


def check(
    target: Target, y: F32, x: F32, held: Any, *, outliers: bool = False, precision: str = "auto"
) -> None:
    """Within 4 eps of the magnitudes of the terms that the kernel adds, and of what fewer bits than
    fp32 cost where they are allowed.
    """
    w, terms = weights_and_terms(held)
    parts = held.parts()
    x64 = x.astype(np.float64)
    tolerance = EPS * (1.2 * np.sqrt(x.shape[1]) if outliers else 4)
    scale = np.abs(x64) @ terms.T + 1e-30
    dtype, rows = parts["dtype"], x.shape[0]
    used = digits(target, dtype, rows, precision)
    if dtype == "int4" and used:
        scale += code_rounding(x64, used) / tolerance * np.abs(w).sum(axis=1)
    elif dtype == "int4":
        scale += rounding(target, dtype, rows, precision) / tolerance * (np.abs(x64) @ np.abs(w).T)
    elif used:
        signed = dtype == "int8"
        codes = np.abs(parts["q"].astype(np.int8 if signed else int) - (0.0 if signed else 128.0))
        step = code_rounding(x64 * parts["in_scale"], used)
        scale += step / tolerance * codes.sum(axis=1) * parts["out_scale"]
    assert_close(y, x64 @ w.T, tolerance, scale=scale)


@each_target
@pytest.mark.parametrize("want", FORMATS)
@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 33), (64, 64), (130, 31), (67, 257), (96, 768), (33, 1000)], ids=str
)
def test_product(target: Target, want: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[0] * shape[1])
    w = rng.standard_normal(shape).astype(np.float32)
    for padding in (0, 3):
        device = target.open(padding=padding)
        held = quantized(device, w, want)
        for rows in (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 17, 33, 64, 257):
            x = rng.standard_normal((rows, shape[1])).astype(np.float32)
            check(target, product(device, x, held), x, held)


@pytest.mark.parametrize("target", GPUS, ids=str)
@pytest.mark.parametrize("want", FORMATS)
@pytest.mark.parametrize("shape", [(7, 33), (67, 257), (96, 768), (1024, 1000)], ids=str)
def test_product_of_a_gpu(target: Target, want: str, shape: tuple[int, int]) -> None:
    """Its codes are the CPU's. x is rounded to 22 bits up to 8 rows and to 11 beyond, and so is W
    where a library multiplies.
    """
    small = target.on_shim
    if small and shape[0] == 1024:
        pytest.skip("a thousand times slower there")
    rng = np.random.default_rng(shape[0] * shape[1])
    w = rng.standard_normal(shape).astype(np.float32)
    exact, terms = weights_and_terms(quantized(TARGETS[0].open(), w, want))
    device = target.open(padding=3)
    held = quantized(device, w, want)
    for rows in (1, 7, 9, 33, 65) if small else (1, 3, 4, 7, 8, 9, 16, 17, 33, 48, 49, 64, 65, 257):
        x = rng.standard_normal((rows, shape[1])).astype(np.float32)
        x64 = x.astype(np.float64)
        tolerance = 4 * EPS + (2.0**-22 if rows <= 8 else 2.0**-11 if rows <= 48 else 2.0**-10)
        scale = np.abs(x64) @ terms.T
        assert_close(product(device, x, held), x64 @ exact.T, tolerance, scale=scale)


@each_target
@pytest.mark.parametrize("want", FORMATS)
@pytest.mark.parametrize("inner", [4096 + 64, 5000, 8192, 2 * 8192 + 7])
def test_large_inner_dimension(target: Target, want: str, inner: int) -> None:
    """More inputs than x has room for in L1, or than the sums of codes have in 32 bits."""
    rng = np.random.default_rng(inner)
    device = target.open(padding=3)
    held = quantized(device, rng.standard_normal((35, inner)).astype(np.float32), want)
    for rows in (1, 3):
        x = rng.standard_normal((rows, inner)).astype(np.float32)
        check(target, product(device, x, held), x, held)


@each_target
@pytest.mark.parametrize("want", FORMATS)
@pytest.mark.parametrize("precision", ["exact", "fast", "w8a8"])
def test_precision(target: Target, want: str, precision: str) -> None:
    """Fewer bits of x where the ISA has them, for inputs of either sign, behind relu^2, and with an
    outlier; a row alone or among others.
    """
    rng = np.random.default_rng(11)
    device = target.open(padding=3, threads=2, precision=precision)
    for shape in ((7, 33), (130, 31), (67, 257), (33, 1100)):
        w = rng.standard_normal(shape).astype(np.float32)
        for use in ("linear", "ffn_value"):
            held = quantized(device, w, want, use=use)
            for rows in (1, 15, 16, 17, 33, 70, 257):
                x = rng.standard_normal((rows, shape[1])).astype(np.float32)
                x[0] = np.maximum(x[0], 0) ** 2
                x[-1, 3] = 300
                y = product(device, x, held)
                check(target, y, x, held, precision=precision, outliers=True)
                narrow = digits(target, want, 16, precision) or rounding(
                    target, want, 16, precision
                )
                most = MORE_ROWS if use == "linear" else 16  # that another kernel takes
                few = target.isa in AMX and want == "int4"
                least = most + 1 if few and rows > most else 16
                if rows > least and narrow:
                    np.testing.assert_array_equal(product(device, x[-least:], held), y[-least:])


@each_target
@pytest.mark.parametrize("want", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_adversarial_codes(target: Target, want: str, rows: int) -> None:
    """All codes at an extreme and large inputs of one sign: sums that narrow integers overflow."""
    device = target.open()
    for value in (1.0, -1.0):
        w = np.full((40, 4096), value, np.float32)
        w[:, 0] = -value if want == "mm8" else value
        x = np.full((rows, 4096), 3e4, np.float32)
        held = quantized(device, w, want)
        check(target, product(device, x, held), x, held, outliers=True)


@each_target
@pytest.mark.parametrize("want", FORMATS)
def test_hard_inputs(target: Target, want: str) -> None:
    """Fixed point holds, or leaves to floats, whatever x is: digits that carry, long rows,
    outliers, magnitudes at both ends of fp32.
    """
    rng = np.random.default_rng(2)
    device = target.open()
    below = np.nextafter(np.float32(2), np.float32(0))  # the highest digit is full
    for n in (96, 16500):
        w = rng.standard_normal((9, n)).astype(np.float32)
        w[3], w[4] = 1, -1
        held = quantized(device, w, want)
        normal = rng.standard_normal(n).astype(np.float32)
        outlier = normal.copy()
        outlier[n // 2] = 3e5
        tiny = normal * np.float32(1e-39)
        mixed = np.where(rng.random(n) < 0.5, normal, tiny)
        signs = np.where(rng.random(n) < 0.5, below, -below)
        full = np.full(n, below)
        inputs = [outlier, tiny, mixed, signs, full, -full, normal * np.float32(1e30), 0 * normal]
        for x in inputs:
            rows = x[None].astype(np.float32)
            check(target, product(device, rows, held), rows, held, outliers=True)
        every = np.stack(inputs).astype(np.float32)
        check(target, product(device, every[:5], held), every[:5], held, outliers=True)


@each_target
@pytest.mark.parametrize("want", FORMATS)
@pytest.mark.parametrize("rows", [1, 3])
def test_inputs_that_are_not_finite(target: Target, want: str, rows: int) -> None:
    rng = np.random.default_rng(3)
    w = rng.standard_normal((40, 70)).astype(np.float32)
    device = target.open()
    held = quantized(device, w, want)
    for value in (np.nan, np.inf, -np.inf):
        x = rng.standard_normal((rows, 70)).astype(np.float32)
        x[0, 5] = value
        y = product(device, x, held)
        shown = y[0][decoded(held)[:, 5] != 0]  # nothing hides them
        assert np.isnan(shown).all() if np.isnan(value) else not np.isfinite(shown).any()


@each_target
@pytest.mark.parametrize("want", FORMATS)
def test_hard_weights(target: Target, want: str) -> None:
    """Zero matrices, rows and columns, constants, denormals, outliers: finite and near."""
    rng = np.random.default_rng(1)
    shape, tiny = (36, 96), np.float32(1e-39)
    plain = rng.standard_normal(shape).astype(np.float32)
    zero_row, zero_column, outlier = plain.copy(), plain.copy(), plain.copy()
    zero_row[4], zero_column[:, 9], outlier[3, 5] = 0, 0, 1e5
    device = target.open()
    for w in (
        0 * plain,
        0 * plain + 0.7,
        plain * tiny,
        zero_row,
        zero_column,
        outlier,
    ):
        held = quantized(device, w, want)
        values = decoded(held)
        assert np.isfinite(values).all()
        assert np.abs(values - w).max() <= 0.14 * np.abs(w).max() + 1e-37
        for rows in (1, 20):
            x = rng.standard_normal((rows, shape[1])).astype(np.float32)
            check(target, product(device, x, held), x, held, outliers=True)


@each_target
@pytest.mark.parametrize("want", FORMATS)
@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 33), (130, 31), (67, 257), (96, 768), (1024, 41), (2048, 65)], ids=str
)
def test_inputs_that_are_zero(target: Target, want: str, shape: tuple[int, int]) -> None:
    """Behind relu^2: any share of zeros, all of them, none; for few rows and for many."""
    rng = np.random.default_rng(shape[0] * shape[1])
    w = rng.standard_normal(shape).astype(np.float32)
    device = target.open(threads=3, padding=3)
    held = quantized(device, w, want, use="ffn_value")
    np.testing.assert_array_equal(held.decoded(), quantized(device, w, want).decoded())
    for density in (0.0, 0.1, 0.5, 1.0):
        for rows in (1, 2, 3, 4, 5, 7, 12, 13, 17, 40):
            x = rng.standard_normal((rows, shape[1])).astype(np.float32) ** 2
            x *= rng.random(x.shape) < density
            check(target, product(device, x, held), x, held)


@each_target
@pytest.mark.parametrize("want", FORMATS)
@pytest.mark.parametrize("use", ["linear", "ffn_value"])
def test_threads_change_nothing(target: Target, want: str, use: str) -> None:
    rng = np.random.default_rng(5)
    w = rng.standard_normal((301, 517)).astype(np.float32)
    for rows in (1, 4, 40):
        x = rng.standard_normal((rows, 517)).astype(np.float32)
        results = []
        for threads in (1, 2, 7):
            device = target.open(threads=threads)
            held = quantized(device, w, want, use=use)
            results.append((held.parts(), product(device, x, held)))
        for parts, y in results[1:]:
            np.testing.assert_array_equal(y, results[0][1])
            for name, value in parts.items():
                np.testing.assert_array_equal(value, results[0][0][name])


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("want", FORMATS)
def test_every_float_type_can_be_quantized(dtype: str, want: str) -> None:
    rng = np.random.default_rng(6)
    w = rng.standard_normal((50, 64)).astype(np.float32)
    held = weight(TARGETS[0].open(), bits(w, dtype), dtype, want=want)
    relative = np.linalg.norm(decoded(held) - w) / np.linalg.norm(w)
    assert relative < {"int8": 0.008, "mm8": 0.012, "int4": 0.09}[want]


def round_to_nearest_int4(w: F32) -> F64:
    """The plain form: the largest magnitude of a group of 32 becomes 7."""
    groups = w.astype(np.float64).reshape(w.shape[0], -1, 32)
    scale = np.abs(groups).max(axis=2, keepdims=True) / 7
    return np.asarray((np.rint(groups / scale).clip(-8, 7) * scale).reshape(w.shape))


def round_to_nearest_int8(w: F32) -> F64:
    """The plain form: a scale per output."""
    scale = np.abs(w.astype(np.float64)).max(axis=1, keepdims=True) / 127
    return np.asarray(np.rint(w / scale) * scale)


@pytest.mark.parametrize("seed", range(3))
def test_int4_beats_round_to_nearest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for w in (rng.standard_normal((64, 512)), rng.standard_t(4, (64, 512)), rng.random((64, 512))):
        w = w.astype(np.float32)
        plain = float(np.linalg.norm(round_to_nearest_int4(w) - w) / np.linalg.norm(w))
        assert error(w, "int4") < 0.93 * plain


def searched_int4(w: F32) -> F64:
    """The 30 scales of docs/design/0009, each refitted in float64 and rounded to fp16. The codes of
    a try are those of fp32: at 7.5 the largest element itself lies between two."""
    single = w.reshape(w.shape[0], -1, 32)
    groups = single.astype(np.float64)
    at = np.abs(groups).argmax(axis=2, keepdims=True)
    extreme = np.take_along_axis(groups, at, axis=2)
    best = np.zeros_like(extreme)
    scale = np.zeros_like(extreme)
    for sign in (-1, 1):
        for step in np.arange(6, 9.75, 0.25):
            to_code = np.float32(sign * step) / extreme.astype(np.float32)
            q = np.rint((single * to_code).clip(-8, 7)).astype(np.float64)
            along = (groups * q).sum(axis=2, keepdims=True)
            square = (q * q).sum(axis=2, keepdims=True)
            better = along * along / square > best
            best = np.where(better, along * along / square, best)
            scale = np.where(better, along / square, scale)
    scale = scale.astype(np.float16).astype(np.float64)
    return np.asarray((np.rint((groups / scale).clip(-8, 7)) * scale).reshape(w.shape))


@pytest.mark.parametrize("seed", range(3))
def test_int4_takes_the_best_of_its_scales(seed: int) -> None:
    """Group by group as good as in float64: of two scales that are equally good either will do."""
    rng = np.random.default_rng(seed)
    for w in (rng.standard_normal((48, 512)), rng.standard_t(4, (48, 512)), rng.random((48, 512))):
        w = w.astype(np.float32)
        got = decoded(quantized(TARGETS[0].open(), w, "int4"))
        errors = [np.square(v - w).reshape(48, -1, 32).sum(axis=2) for v in (got, searched_int4(w))]
        np.testing.assert_allclose(errors[0], errors[1], rtol=1e-3)


def test_int8_takes_outliers_out() -> None:
    """Channels of large weights do not cost the others their steps."""
    rng = np.random.default_rng(7)
    w = rng.standard_normal((256, 512)).astype(np.float32)
    plain = float(np.linalg.norm(round_to_nearest_int8(w) - w))
    held = quantized(TARGETS[0].open(), w, "int8")
    assert np.linalg.norm(decoded(held) - w) < 1.01 * plain
    w[:, [3, 77, 400]] *= 30
    plain = float(np.linalg.norm(round_to_nearest_int8(w) - w))
    held = quantized(TARGETS[0].open(), w, "int8")
    assert np.linalg.norm(decoded(held) - w) < 0.2 * plain


def test_bits_per_weight() -> None:
    w = np.random.default_rng(8).standard_normal((512, 1024)).astype(np.float32)
    device = TARGETS[0].open()
    for want, most in (("int8", 8.13), ("mm8", 8.25), ("int4", 4.5)):
        assert quantized(device, w, want).parts()["bytes"] * 8 / w.size <= most


def test_use_chooses_the_type() -> None:
    w = np.random.default_rng(9).standard_normal((64, 64)).astype(np.float32)
    device = TARGETS[0].open()

    def dtype(want: str, use: str) -> str:
        return str(quantized(device, w, want, use=use).parts()["dtype"])

    assert dtype("int4", "head") == dtype("int4", "lora") == dtype("int8", "lora") == "int8"
    assert dtype("int4", "ffn_value") == "int4"
    assert dtype("mm8", "lora") == "fp32"
    for want in FORMATS:
        assert dtype(want, "embedding") == "fp32"


@pytest.mark.parametrize("want", FORMATS)
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_non_finite_weights_are_refused(want: str, bad: float) -> None:
    w = np.ones((8, 40), np.float32)
    w[3, 39] = bad
    with pytest.raises(Exception, match=r"test\.weight.*infinities or NaN"):
        quantized(TARGETS[0].open(), w, want)


@pytest.mark.parametrize("name", ["key", "value"])
def test_mm8_equals_the_package(name: str) -> None:
    """Codes and scales bit for bit; the package stores matrices as [in, out]."""
    golden = np.load(GOLDEN / "int8_mm8.npz")
    tensor = f"blocks.0.ffn.{name}.weight"
    w = read_safetensors(GOLDEN / "model.safetensors")[tensor]
    for threads in (1, 3):
        parts = quantized(TARGETS[0].open(threads=threads), w, "mm8").parts()
        np.testing.assert_array_equal(parts["q"], golden[f"{tensor}.u8"].T)
        for ours, theirs in (
            ("out_offset", "mx"),
            ("out_scale", "rx"),
            ("in_offset", "my"),
            ("in_scale", "ry"),
        ):
            np.testing.assert_array_equal(parts[ours], golden[f"{tensor}.{theirs}"].ravel())
