"""Quantising needs the result and one tensor more; without memory it is an error, not the end."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads /proc/self/status"
)

LAYERS, CHANNELS, VOCAB = 3, 768, 256
MB = 1 << 20
# What is no weight: the stack of the second thread (8 MB), heaps, and address space that aligning
# the matrices of more than 2 MB to huge pages passes over. All codes twice would be 14 MB too much.
RESERVE = (28 + 2 * 2 * LAYERS) * MB

PROGRAM = """
import resource, sys
from pathlib import Path
import wkv
status = Path("/proc/self/status").read_text()
data = 1024 * int(status.split("VmData:")[1].split()[0])
limit = data + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    if sys.argv[2].endswith(".safetensors"):
        wkv.convert(sys.argv[1], sys.argv[2], "int8")
    else:
        wkv.Model.load(sys.argv[1], device="cpu", dtype=sys.argv[2], threads=2)
except MemoryError as error:
    print("MemoryError", error)
except RuntimeError as error:  # not even a thread can start
    print("MemoryError" if "refuses thread" in str(error) else "other", error)
else:
    print("fine")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v4 model of 21 million weights, 42 MB."""
    rng = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (VOCAB, CHANNELS)}
    c = (CHANNELS,)
    for part in ("ln_out", *(f"blocks.{i}.{n}" for i in range(LAYERS) for n in ("ln1", "ln2"))):
        shapes |= {f"{part}.weight": c, f"{part}.bias": c}
    shapes |= {"blocks.0.ln0.weight": c, "blocks.0.ln0.bias": c}
    for i in range(LAYERS):
        for name in ("time_decay", "time_first", "time_mix_k", "time_mix_v", "time_mix_r"):
            shapes[f"blocks.{i}.att.{name}"] = c
        shapes |= {f"blocks.{i}.ffn.time_mix_{n}": c for n in "kr"}
        for name in ("key", "value", "receptance", "output"):
            shapes[f"blocks.{i}.att.{name}.weight"] = (CHANNELS, CHANNELS)
        shapes[f"blocks.{i}.ffn.receptance.weight"] = (CHANNELS, CHANNELS)
        shapes[f"blocks.{i}.ffn.key.weight"] = (4 * CHANNELS, CHANNELS)
        shapes[f"blocks.{i}.ffn.value.weight"] = (CHANNELS, 4 * CHANNELS)
    shapes["head.weight"] = (VOCAB, CHANNELS)
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path = tmp_path_factory.mktemp("memory") / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            values = rng.uniform(-0.1, 0.1, int(np.prod(shape))).astype(np.float32)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return path


def run(path: Path, what: str, limit: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), what, str(limit)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
    return done.stdout


WEIGHTS = LAYERS * 13 * CHANNELS * CHANNELS
LARGEST = 4 * CHANNELS * CHANNELS


@pytest.mark.parametrize(("dtype", "bits"), [("int8", 8), ("mm8", 8), ("int4", 4.5)])
def test_loading_needs_the_result_and_one_tensor(model: Path, dtype: str, bits: float) -> None:
    result = int(WEIGHTS * bits / 8)
    assert run(model, dtype, result + LARGEST + RESERVE).startswith("fine")


def test_writing_needs_one_tensor(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert run(model, str(out), LARGEST + RESERVE).startswith("fine")
    assert out.stat().st_size > WEIGHTS


@pytest.mark.parametrize("dtype", ["int8", "mm8", "int4"])
def test_no_memory_is_an_error(model: Path, dtype: str) -> None:
    """Wherever the allocation fails, on the pool's threads as well."""
    for limit in (2 * MB, 9 * MB, 11 * MB, 14 * MB):
        output = run(model, dtype, limit)
        assert output.startswith(("MemoryError", "fine" if limit > WEIGHTS // 2 else "Memory"))
