"""Results do not depend on the number of threads; the ISA asked for is the one that runs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from ops import harness
from ops.harness import F32, Target, cpu_targets, load_ops

OPS = load_ops()
THREADS = [2, 3, 7]
ROWS = [1, 70, 2, 1, 33]
C, HEADS = 320, 5

pytestmark = pytest.mark.parametrize("target", cpu_targets(), ids=str)


def all_ops(target: Target, threads: int) -> list[F32]:
    """Every op with state or rows, on more work than one thread keeps to itself."""
    rng = np.random.default_rng(11)
    T, B, N = sum(ROWS), len(ROWS), C // HEADS

    def rows(low: float = -1.0, high: float = 1.0) -> F32:
        return rng.uniform(low, high, (T, C)).astype(np.float32)

    def vector() -> F32:
        return rng.uniform(-1, 1, C).astype(np.float32)

    def states(size: int) -> F32:
        return rng.uniform(-1, 1, (B, size)).astype(np.float32)

    device = target.open(threads=threads)
    out = [device.layer_norm(rows(), vector(), vector()), device.add(rows(), rows())]
    out += device.shift_delta(rows(), states(C), ROWS)
    mixed, new = device.shift_mix(rows(), states(C), np.stack([vector() for _ in range(6)]), ROWS)
    out += [*mixed, new]
    out += device.wkv4(rows(), rows(), rows(), -np.exp(vector()), vector(), states(3 * C), ROWS)
    out += device.wkv6(
        rows(), rows(), rows(), rows(0.1, 1), vector(), HEADS, states(C * N), ROWS,
        weight=vector(), bias=vector(), gate=rows(),
    )  # fmt: skip
    out += device.wkv7(
        rows(), rows(0.6, 1), rows(), rows(), rows(0, 1), vector(), vector(), vector(), HEADS,
        states(C * N), ROWS, rows(), rows(0, 1), vector(), vector(), 64e-5, rows(),
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def single() -> dict[Target, list[F32]]:
    return {target: all_ops(target, 1) for target in cpu_targets()}


@pytest.mark.parametrize("threads", THREADS)
def test_any_thread_count_gives_the_same_bits(
    target: Target, threads: int, single: dict[Target, list[F32]]
) -> None:
    for one, many in zip(single[target], all_ops(target, threads), strict=True):
        np.testing.assert_array_equal(one, many)


def test_name_tells_the_isa_and_the_threads(target: Target) -> None:
    assert OPS.Device("cpu", target.isa, 3).name == f"cpu {target.isa}, 3 threads"
    assert OPS.Device("cpu", target.isa, 1).name == f"cpu {target.isa}, 1 thread"


def run_python(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    prelude = (
        f"import sys; sys.path.insert(0, {str(harness.REPOSITORY / 'tests')!r})\n"
        "from ops.harness import load_ops; ops = load_ops()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + code],
        env={**harness.environment(), "WKV_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


def test_wkv_isa_forces(target: Target) -> None:
    if target.isa.endswith("emulated"):
        pytest.skip("the library itself does not have it")
    done = run_python("print(ops.Device('cpu').name)", target.isa)
    assert done.stdout.startswith(f"cpu {target.isa},"), done.stderr


def test_an_unknown_isa_is_an_error(target: Target) -> None:
    with pytest.raises(RuntimeError, match="'neon' is not built into this library; use one of"):
        OPS.Device("cpu", "neon")
    done = run_python("ops.Device('cpu')", "neon")
    assert done.returncode != 0
    assert "[isa] WKV_ISA='neon' is not built" in done.stderr
