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

    def rounding(self, dtype: str, rows: int) -> float:
        """How far a product of such weights may round its inputs, relative to them.

        The CPU keeps them as they are; CUDA's tensor cores take two halves of the weights' type up
        to 8 rows and one beyond (docs/gpu.md).
        """
        bits = {"fp16": 11, "bf16": 8}.get(dtype, 0)
        if self.device == "cpu" or bits == 0:
            return 0.0
        return 2.0 ** -(2 * bits if rows <= 8 else bits)

    def open(self, threads: int = 1, padding: int = 0, skip_zeros: str = "auto") -> Any:
        """A ``Device`` of the extension; the ISA that was asked for is the one that runs."""
        device = load_ops().Device(
            self.device, isa=self.isa, threads=threads, padding=padding, skip_zeros=skip_zeros
        )
        if self.isa:
            assert device.name.startswith(f"cpu {self.isa}, {threads} thread")
        return device


def targets() -> list[Target]:
    """Every device of this machine; the CPU once per ISA that runs here, or as WKV_ISA says."""
    ops = load_ops()
    forced = os.environ.get("WKV_ISA")
    isas = [name for name, runnable in ops.isas() if runnable and forced in (None, "", name)]
    return [Target("cpu", isa) for isa in isas] + [
        Target(name) for name in ops.devices() if name != "cpu"
    ]


def cpu_targets() -> list[Target]:
    """The CPU once per ISA."""
    return [t for t in targets() if t.device == "cpu"]


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
