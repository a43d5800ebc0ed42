"""Access to the test-only extension ``_wkv_ops`` (tests/ops/ops_module.cpp) and to its targets."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

REPOSITORY = Path(__file__).resolve().parents[2]


def build_dirs() -> list[Path]:
    """``WKV_BUILD_DIR`` alone if it is set, else ``build`` and the presets' folders in it."""
    forced = os.environ.get("WKV_BUILD_DIR")
    if forced:
        return [Path(forced)]
    build = REPOSITORY / "build"
    return [build, *sorted(p for p in build.glob("*") if p.is_dir())]


def environment() -> dict[str, str]:
    """For a child process: as here, but free to choose the ISA."""
    return {k: v for k, v in os.environ.items() if k != "WKV_ISA"}


def find_extension(name: str) -> Path | None:
    """The newest built extension module of that name."""
    found = [
        f
        for d in build_dirs()
        for pattern in (f"{name}*.so", f"tests/ops/{name}*.so")
        for f in d.glob(pattern)
    ]
    return max(found, key=lambda f: f.stat().st_mtime, default=None)


def load_ops() -> ModuleType:
    """The extension; skips the calling test module where it is not built."""
    if "_wkv_ops" in sys.modules:
        return sys.modules["_wkv_ops"]
    path = find_extension("_wkv_ops")
    if path is None:
        pytest.skip(
            "_wkv_ops is not built: configure with -DWKV_BUILD_TESTS=ON, or set WKV_BUILD_DIR",
            allow_module_level=True,
        )
    spec = importlib.util.spec_from_file_location("_wkv_ops", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_wkv_ops"] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Target:
    """A device, for the CPU with one of its instruction sets."""

    device: str
    isa: str = ""

    def __str__(self) -> str:
        return f"{self.device}-{self.isa}" if self.isa else self.device

    @property
    def on_shim(self) -> bool:
        """A CUDA device whose kernels run on fibres (tests/shim): a thousand times slower."""
        return self.device != "cpu" and "shim" in self.open().name

    def open(
        self,
        threads: int = 1,
        padding: int = 0,
        skip_zeros: str = "auto",
        precision: str = "auto",
    ) -> Any:
        """A ``Device`` of the extension; the ISA that was asked for is the one that runs."""
        device = load_ops().Device(
            self.device,
            isa=self.isa,
            threads=threads,
            padding=padding,
            skip_zeros=skip_zeros,
            precision=precision,
        )
        if self.isa:
            assert device.name.startswith(f"cpu {self.isa}, {threads} thread")
        return device


EMULATED = "amx-emulated"
AMX = ("amx", EMULATED)
DOTS = "avx512_bf16"  # dot products of bf16, for what is one product of one part
EMULATED_AVX512 = "avx512-emulated"
AVX512 = ("avx512", EMULATED_AVX512, DOTS)
WORDS = ("avx2",)  # products in integers of 16 bits
WORDS_OF_INT4 = (*WORDS, "avx512", EMULATED_AVX512)  # of these weights, likewise
NARROW_ROWS = 16  # from so many rows on a product may use fewer bits than fp32
# From so many rows on AMX has `exact` products; with codes input-major from 9.
FEW_ROWS = {"bf16": 7, "int8": 7, "mm8": 7, "int4": 5}
MORE_ROWS = 32  # up to which int4 codes are multiplied and scaled then; input-major 16


def targets() -> list[Target]:
    """Every device of this machine; the CPU once per ISA that runs here, or as WKV_ISA says.

    AMX in software has the vectors of AVX-512 and runs beside it; AVX-512 in software runs beside
    AVX2 where the processor has no more.
    """
    ops = load_ops()
    forced = os.environ.get("WKV_ISA")
    runnable = [name for name, runs in ops.isas() if runs]
    best = "avx512" if "avx512" in runnable else "avx2"
    wanted = {forced, EMULATED, EMULATED_AVX512} if forced == best else {forced}
    isas = [name for name in runnable if not forced or name in wanted]
    return [Target("cpu", isa) for isa in isas] + [
        Target(name) for name in ops.devices() if name != "cpu"
    ]


def cpu_targets() -> list[Target]:
    """The CPU once per ISA."""
    return [t for t in targets() if t.device == "cpu"]


def rounding(
    target: Target, dtype: str, rows: int, precision: str = "auto", small: bool = True
) -> float:
    """What a product with weights that are no codes may err beyond the rounding of fp32, as part of
    the sum of ``|x w|``, for W with a side below 512 (``small``) or without. bf16 errs by 2^-8 of a
    number, two parts of it by 2^-17. CUDA's tensor cores round x to two halves of the weights' type
    up to 8 rows, to one beyond (docs/gpu.md).
    """
    if target.device != "cpu":
        bits = {"fp16": 11, "bf16": 8}.get(dtype, 0)
        return 2.0 ** -(2 * bits if rows <= 8 else bits) if bits else 0.0
    if rows < NARROW_ROWS:
        few = target.isa in AMX and dtype in ("bf16", "int4") and rows >= FEW_ROWS[dtype]
        return 2.0**-17 if few else 0.0
    if target.isa not in (*AMX, DOTS):
        return 0.0
    if precision in ("auto", "w8a8"):
        if dtype == "fp32":
            return 0.0
        precision = "exact" if small else "fast"
    if precision == "exact" and target.isa == DOTS:
        return 0.0
    of_x = 2.0**-17 if precision == "exact" else 2.0**-8
    # Two parts of W and x, and the product of the low ones; or W and x, one after another.
    more = 3 if precision == "exact" else 1.01
    return of_x * (1 if dtype == "bf16" else 1 + more)


def digits(target: Target, dtype: str, rows: int, precision: str = "auto") -> int:
    """Bytes of x in a product with codes of W as they are; 0: fp32, or bf16."""
    codes = dtype in ("int8", "mm8")
    if target.isa in (WORDS_OF_INT4 if dtype == "int4" else WORDS):
        wide = precision == "exact" or (dtype == "mm8" and precision == "auto")
        return 2 if (codes or dtype == "int4") and rows >= NARROW_ROWS and not wide else 0
    if not codes or target.isa not in AVX512 + AMX:
        return 0
    if rows < NARROW_ROWS:
        return 3 if target.isa in AMX and rows >= FEW_ROWS[dtype] else 0
    automatic = 3 if dtype == "mm8" else 2
    return {"w8a8": 1, "fast": 2, "exact": 3}.get(precision, automatic)


def code_rounding(x: Any, digits: int) -> F64:
    """The largest error of an element of x [rows, K], as a column, cut into so many bytes."""
    high, low = np.maximum(x.max(axis=1), 0), np.minimum(x.min(axis=1), 0)
    if digits == 1:  # half a step, and as much for the zero point, which is whole
        return np.asarray((high - low) / 254)[:, None]
    largest = {0: np.inf, 2: 127 * 256, 3: 127 * 65536}[digits]
    return np.asarray(0.51 * np.maximum(high, -low) / largest)[:, None]


def f64(*arrays: ArrayLike) -> list[F64]:
    """The same values for the oracle."""
    return [np.asarray(a, np.float64) for a in arrays]


def split_rows(x: Any, rows: Iterable[int]) -> list[Any]:
    """The rows of each sequence of a ragged batch."""
    return np.split(x, np.cumsum(list(rows))[:-1])


def assert_close(actual: Any, expected: Any, tolerance: float, scale: Any = None) -> None:
    """``|actual - expected| <= tolerance * scale``; scale: default the largest expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all()
    if scale is None:
        scale = np.abs(expected).max(initial=0.0)
    error = np.abs(actual - expected)
    worst = float(np.max(error / (tolerance * np.maximum(scale, 1e-30)), initial=0.0))
    assert not np.isnan(actual).any(), "NaN"
    assert worst <= 1, f"error is {worst:.3g} times the tolerance of {tolerance:g} * scale"
