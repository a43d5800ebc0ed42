"""bench_matmul and bench_rows as people call them. Their figures are not judged here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(os.environ.get("WKV_BUILD_DIR", "")) / "bench" / "kernels"
pytestmark = pytest.mark.skipif(
    not (KERNELS / "bench_matmul").exists(), reason="no build to look at; set WKV_BUILD_DIR"
)


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(KERNELS / name), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("density", [None, "0.2"])
def test_products(density: str | None) -> None:
    options = ["--isa", "generic", "--threads", "1", "--dtype", "int4", "--shape", "96x64"]
    options += ["--rows", "1,17", "--seconds", "0.01"]
    done = run("bench_matmul", *options, *(("--density", density) if density else ()))
    assert (done.returncode, done.stderr) == (0, "")
    name, roofs, titles, *rows, again = done.stdout.splitlines()
    assert name == "cpu generic, 1 thread"
    assert roofs.startswith("roofs: read ")
    assert again.startswith("roofs again: read ")
    assert titles.split() == ["dtype", "rows", "us", "GB/s", "share", "GFLOP/s", "share", "samples"]
    assert [row.split()[:2] for row in rows] == [["int4", "1"], ["int4", "17"]]
    for row in rows:
        assert all(float(figure.rstrip("%")) > 0 for figure in row.split()[2:7])


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8", "mm8", "int4"])
def test_every_unit_has_a_roof(dtype: str) -> None:
    """Products of few and of many rows by the best instruction set of this machine."""
    options = ["--threads", "1", "--dtype", dtype, "--shape", "64x64", "--rows", "1,17"]
    done = run("bench_matmul", *options, "--precision", "fast", "--seconds", "0.01")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(f"{dtype} ")]
    assert [row[1] for row in rows] == ["1", "17"]


@pytest.mark.parametrize("arguments", [["--fly", "1"], ["--rows"], ["--shape", "wide"]])
def test_failures_are_one_line(arguments: list[str]) -> None:
    done = run("bench_matmul", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("bench_matmul: ")
    assert done.stderr.count("\n") == 1


def test_rows() -> None:
    options = ["--isa", "generic", "--threads", "1", "--layers", "2", "--channels", "64"]
    done = run("bench_rows", *options, "--seconds", "0.01")
    assert (done.returncode, done.stderr) == (0, "")
    assert "wkv7" in done.stdout
