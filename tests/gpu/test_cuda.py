"""Models on a CUDA device: against the official code's logits, float64, the CPU and themselves.

They run where ``wkv.devices()`` has a usable CUDA device. The target ``wkv_cuda_shim``, named by
``WKV_CUDA_PLUGIN``, provides one on any machine: the same kernels on fibres.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import reference
import wkv
from models.goldens import GOLDENS, Golden
from models.specs import SPECS
from reference import Array
from reference.files import round_to, write_safetensors
from reference.random_weights import Spec, random_weights

CUDA = [d for d in wkv.devices() if d.name.startswith("cuda")]
if not any(d.usable for d in CUDA):
    pytest.skip(f"no CUDA device: {[d.reason for d in CUDA]}", allow_module_level=True)

ON_SHIM = any("shim" in d.description for d in CUDA)
ONE_EACH = list({spec.version: spec for spec in SPECS}.values())
# The shim's tensor cores take a thousand times longer.
HALVES = ONE_EACH if ON_SHIM else SPECS
GOLDEN_TOLERANCE = {"fp32": 5e-5, "fp16": 0.03, "bf16": 0.25}
GOLDEN_DTYPES = ["fp32"] if ON_SHIM else list(GOLDEN_TOLERANCE)


@cache
def weights_at(index: int) -> dict[str, Array]:
    return random_weights(SPECS[index])


def weights_of(spec: Spec) -> dict[str, Array]:
    return weights_at(SPECS.index(spec))


class FileOf(Protocol):
    def __call__(self, spec: Spec, dtype: str = "fp32") -> Path: ...


@pytest.fixture(scope="session")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> FileOf:
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(spec: Spec, dtype: str = "fp32") -> Path:
        path = folder / f"{SPECS.index(spec)}-{dtype}.safetensors"
        return path if path.exists() else write_safetensors(path, weights_of(spec), dtype)

    return write


@cache
def load(path: Path, dtype: str = "auto", device: str = "cuda") -> wkv.Model:
    try:
        return wkv.Model.load(path, device=device, dtype=dtype)
    except (wkv.UnsupportedError, wkv.ModelFormatError) as error:
        if "does not run on cuda" in str(error):
            pytest.skip(f"a model for the CPU alone: {error}")
        try:
            wkv.Model.load(path, device="cpu", dtype=dtype)
        except (wkv.UnsupportedError, wkv.ModelFormatError):
            pytest.skip(f"not on the CPU either: {error}")
        raise


def tokens_of(spec: Spec, n: int, seed: int = 0) -> list[int]:
    n = min(n, spec.ctx_len) if spec.bounded else n
    ids: list[int] = np.random.default_rng((n, seed)).integers(0, spec.n_vocab, n).tolist()
    return ids


def relative(got: Array, want: Array) -> float:
    return float(np.abs(got - want).max() / max(1.0, float(np.abs(want).max())))


def parts(state: wkv.State) -> dict[str, Array]:
    return {name: np.asarray(state[name]) for name in list(state.keys())}


def assert_parts(got: wkv.State, want: dict[str, Array], tolerance: float) -> None:
    for name, part in want.items():
        assert relative(np.asarray(got[name]), part) <= tolerance, name


@pytest.mark.parametrize("dtype", GOLDEN_DTYPES)
@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_golden(golden: Golden, dtype: str) -> None:
    """The official code's logits and, in fp32, its state; prompt at once, then token by token."""
    model = load(golden.model, dtype)
    assert model.device == "cuda:0"
    state = model.new_state()
    tolerance = GOLDEN_TOLERANCE[dtype]
    logits = model.forward(golden.prompt, state, logits="all")
    assert np.abs(logits - golden.logits).max() <= tolerance
    if dtype == "fp32":
        for name, part in golden.state.items():
            got = np.asarray(state[name])[: len(part)]
            error = np.abs(got - part).max()
            assert error <= 2e-5 * max(1.0, float(np.abs(part).max())), name
    rows = np.stack([model.forward([t], state) for t in golden.continuation])
    assert np.abs(rows - golden.logits_cont).max() <= tolerance


@pytest.mark.parametrize("name", ["4v0-660K", "5v2-730K", "7v0-834K"])
def test_trained_tiny_models(name: str, shared: Path) -> None:
    """rwkv.cpp's tiny models: its own expected logits after `"in`, and the rwkv package's."""
    tiny = shared / "tiny"
    if not tiny.is_dir():
        pytest.skip(f"no {tiny}")
    model = load(tiny / f"tiny-rwkv-{name}.pth", "fp32")
    logits = model.forward(list(b'"in the '), model.new_state(), logits="all")
    assert np.abs(logits[2] - np.load(tiny / f"expected-logits-{name}.npy")).max() <= 1e-4
    assert np.abs(logits - np.load(tiny / f"pip-logits-{name}.npy")).max() <= 1e-4


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_fp32_equals_float64(spec: Spec, file_of: FileOf) -> None:
    model = load(file_of(spec), "fp32")
    truth = reference.load(weights_of(spec))
    tokens = tokens_of(spec, 21)
    want, want_state = truth.forward(tokens)
    state = model.new_state()
    assert relative(model.forward(tokens, state, logits="all"), want) <= 2e-5
    assert_parts(state, want_state, 2e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("spec", HALVES, ids=str)
def test_half_equals_float64(spec: Spec, dtype: str, file_of: FileOf) -> None:
    """Up to 8 rows activations are exact to 22 bits (bf16: 16); beyond they are rounded once."""
    model = load(file_of(spec, dtype))
    truth = reference.load({name: round_to(a, dtype) for name, a in weights_of(spec).items()})
    tokens = tokens_of(spec, 30)
    want, _ = truth.forward(tokens)
    state = model.new_state()
    few = np.concatenate(
        [model.forward(tokens[i : i + 3], state, logits="all") for i in range(0, len(tokens), 3)]
    )
    many = model.forward(tokens, model.new_state(), logits="all")
    assert relative(few, want) <= {"fp16": 1e-4, "bf16": 2e-3}[dtype]
    assert relative(many, want) <= {"fp16": 2e-2, "bf16": 1.5e-1}[dtype]


@pytest.mark.parametrize("dtype", ["int8", "mm8", "int4"])
@pytest.mark.parametrize("spec", ONE_EACH, ids=str)
def test_quantised_equals_the_cpu(spec: Spec, dtype: str, file_of: FileOf) -> None:
    """Both decode the codes that one function makes; the CPU multiplies in fp32."""
    cuda, cpu = load(file_of(spec), dtype), load(file_of(spec), dtype, "cpu")
    tokens = tokens_of(spec, 20)
    want = cpu.forward(tokens, cpu.new_state(), logits="all")
    state = cuda.new_state()
    few = np.concatenate(
        [cuda.forward(tokens[i : i + 2], state, logits="all") for i in range(0, len(tokens), 2)]
    )
    many = cuda.forward(tokens, cuda.new_state(), logits="all")
    assert relative(few, want) <= 1e-2
    assert relative(many, want) <= 4e-2


@pytest.mark.parametrize("dtype", ["int8", "mm8", "int4"])
def test_a_library_multiplies_quantised_weights(
    dtype: wkv.DTypeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more than 64 rows; a prompt, and streams whose steps are replayed as graphs."""
    monkeypatch.setenv("WKV_SHIM_LIBRARY", "1")
    spec, n = ("v7:1x128:97", 70) if ON_SHIM else ("v7:2x1024:1000", 300)
    cuda, cpu = (wkv.Model.synthetic(spec, dtype=dtype, device=d) for d in ("cuda", "cpu"))
    tokens = np.random.default_rng(4).integers(0, 97, n).tolist()
    want = cpu.forward(tokens, cpu.new_state(), logits="all")
    assert relative(cuda.forward(tokens, cuda.new_state(), logits="all"), want) <= 4e-2
    step = [[token] for token in tokens[:70]]
    want = cpu.forward_batch(step, [cpu.new_state() for _ in step])
    each = [cuda.forward_batch(step, [cuda.new_state() for _ in step]) for _ in range(4)]
    assert relative(each[0], want) <= 4e-2
    assert all(np.array_equal(logits, each[0]) for logits in each)


@pytest.mark.parametrize("spec", ONE_EACH, ids=str)
def test_state_moves_between_devices(spec: Spec, file_of: FileOf) -> None:
    cuda, cpu = load(file_of(spec), "fp32"), load(file_of(spec), "fp32", "cpu")
    first, rest = tokens_of(spec, 12), tokens_of(spec, 6)
    there, here = cuda.new_state(), cpu.new_state()
    cuda.forward(first, there)
    cpu.forward(first, here)
    blob = there.to_bytes()
    moved = cpu.state_from_bytes(blob)
    assert moved.to_bytes() == blob
    back = cuda.state_from_bytes(here.to_bytes())
    assert back.to_bytes() == here.to_bytes()
    want = cpu.forward(rest, here, logits="all")
    assert relative(cpu.forward(rest, moved, logits="all"), want) <= 1e-5
    assert relative(cuda.forward(rest, back, logits="all"), want) <= 1e-5


@pytest.mark.parametrize("spec", ONE_EACH, ids=str)
def test_ragged_equals_alone(spec: Spec, file_of: FileOf) -> None:
    """fp32: the sum of a product does not depend on the other rows, so results are equal bits."""
    model = load(file_of(spec), "fp32")
    streams = [tokens_of(spec, n, seed=n) for n in (1, 5, 1, 17, 2, 9)]
    alone = [model.new_state() for _ in streams]
    want = [model.forward(ids, s, logits="all") for ids, s in zip(streams, alone, strict=True)]
    mixed = [model.new_state() for _ in streams]
    got = model.forward_batch(streams, mixed, logits="all")
    for i, rows in enumerate(got):
        assert np.array_equal(rows, want[i])
        assert_parts(mixed[i], parts(alone[i]), 0.0)


@pytest.mark.parametrize(
    ("spec", "rows"), [*((s, 3) for s in ONE_EACH), (ONE_EACH[-1], 5), (ONE_EACH[-1], 9)], ids=str
)
def test_decoding_together_equals_alone(spec: Spec, rows: int, file_of: FileOf) -> None:
    """Steps are filled up with idle rows, here to 4, 8 and 16; nothing of those is to be seen."""
    model = load(file_of(spec), "fp32")
    streams = [tokens_of(spec, 4, seed=i) for i in range(rows)]
    alone, together = ([model.new_state() for _ in streams] for _ in range(2))
    for t in range(len(streams[0])):
        step = [[ids[t]] for ids in streams]
        if t == 1:
            each = [model.hidden([ids], [s]) for ids, s in zip(step, alone, strict=True)]
            want, got = np.concatenate(each, axis=1), model.hidden(step, together)
        else:
            want = np.stack([model.forward(ids, s) for ids, s in zip(step, alone, strict=True)])
            got = model.forward_batch(step, together, logits="none" if t == 2 else "last")
        assert got.shape == ((0, spec.n_vocab) if t == 2 else want.shape)
        assert t == 2 or np.array_equal(got, want)
    assert [s.to_bytes() for s in together] == [s.to_bytes() for s in alone]


@pytest.mark.skipif(not ON_SHIM, reason="the shim counts graphs")
def test_similar_numbers_of_streams_share_a_graph(file_of: FileOf) -> None:
    spec = next(s for s in SPECS if s.version == "7.0")
    model = wkv.Model.load(file_of(spec), device="cuda", dtype="fp32")
    states = [model.new_state() for _ in range(8)]

    def graphs_after(rows: int) -> tuple[int, int]:
        model.forward_batch([[i] for i in range(rows)], states[:rows])
        found = re.search(r"captured: (\d+), replayed: (\d+)", model.backend)
        assert found
        return int(found[1]), int(found[2])

    for _ in range(3):  # until memory has its place
        captured, replayed = graphs_after(8)
    assert captured > 0
    each = graphs_after(7)[1] - replayed
    assert each > 0
    assert graphs_after(5) == (captured, replayed + 2 * each)
    assert graphs_after(6) == (captured, replayed + 3 * each)
    assert graphs_after(4) == (captured, replayed + 3 * each)  # new, therefore not a graph


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8", "mm8", "int4"])
@pytest.mark.parametrize("rows", [2, 8, 16, 24])
def test_the_place_in_a_batch_does_not_matter(rows: int, dtype: str, file_of: FileOf) -> None:
    """One stream at every place of a batch: equal bits. Its numbers alone differ by rounding."""
    spec = next(s for s in SPECS if s.version == "7.0")
    model = load(file_of(spec), dtype)
    prompt, token = tokens_of(spec, 4), tokens_of(spec, 1, seed=1)
    start = model.new_state()
    model.forward(prompt, start)
    states = [start.copy() for _ in range(rows)]
    logits = model.forward_batch([token] * rows, states)
    blobs = {s.to_bytes() for s in states}
    assert len(blobs) == 1
    assert all(np.array_equal(row, logits[0]) for row in logits)
    limit = {"fp16": 2e-2, "bf16": 1.5e-1}.get(dtype, 4e-2)
    assert relative(logits[0], model.forward(token, start)) <= limit


@pytest.mark.skipif(ON_SHIM, reason="the shim runs one kernel after the other")
def test_overlapping_kernels_change_nothing() -> None:
    """No tool sees a kernel that reads what the one before has not written yet; bits do."""
    program = """
import hashlib, wkv
digest = hashlib.sha256()
for version in ("4", "5.2", "6", "7"):
    for dtype in ("fp16", "int4"):
        model = wkv.Model.synthetic(f"v{version}:4x512:1000", dtype=dtype, device="cuda")
        states = [model.new_state() for _ in range(20)]
        model.forward(list(range(300)), states[0])
        for rows in (1, 6, 20):
            for _ in range(4):
                logits = model.forward_batch([[i] for i in range(rows)], states[:rows])
                digest.update(logits.tobytes())
        for state in states:
            digest.update(state.to_bytes())
print(digest.hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"WKV_CUDA_PDL": overlap},
            check=True, capture_output=True,
        ).stdout
        for overlap in ("0", "1")
    }  # fmt: skip
    assert len(digests) == 1


@pytest.mark.parametrize("rows", [1, 3, 8, 20])
@pytest.mark.parametrize("spec", ONE_EACH, ids=str)
def test_replayed_steps_equal_the_first(spec: Spec, rows: int, file_of: FileOf) -> None:
    """The third step of a shape is a graph launch. From equal states equal bits must come."""
    model = load(file_of(spec, "fp16"))
    tokens = tokens_of(spec, rows)[:rows] + [0] * rows
    start = [model.new_state() for _ in range(rows)]
    for state, token in zip(start, tokens, strict=False):
        model.forward([token], state)
    outcomes = []
    for _ in range(5 if ON_SHIM else 100):
        states = [s.copy() for s in start]
        logits = np.stack(model.forward_batch([[t] for t in tokens[:rows]], states))
        outcomes.append((logits.copy(), states[-1].to_bytes()))
    for logits, blob in outcomes[1:]:
        assert np.array_equal(logits, outcomes[0][0])
        assert blob == outcomes[0][1]


@contextmanager
def only_left(n: int) -> Iterator[None]:
    """Holds all of the first device's memory but ``n`` bytes."""
    driver = ctypes.CDLL("libcuda.so.1")
    context, held = ctypes.c_void_p(), ctypes.c_uint64()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    assert driver.cuInit(0) == 0
    assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert driver.cuCtxSetCurrent(context) == 0
    assert driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    assert driver.cuMemAlloc_v2(ctypes.byref(held), ctypes.c_size_t(free.value - n)) == 0
    try:
        yield
    finally:
        driver.cuMemFree_v2(held)
        driver.cuDevicePrimaryCtxRelease_v2(0)


def test_out_of_memory_leaves_the_device_usable(file_of: FileOf) -> None:
    if ON_SHIM:
        pytest.skip("the shim's memory is the host's")
    model = load(file_of(SPECS[0]))
    with only_left(256 << 20):
        with pytest.raises(MemoryError, match="bytes"):
            wkv.Model.synthetic("v7:4x2048", dtype="fp32", device="cuda")
        assert np.isfinite(model.forward([1], model.new_state())).all()


def resident(path: Path) -> int:
    """Bytes of the file that this process has mapped and in memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    return sum(
        int(next(line for line in lines if line.startswith("Rss:")).split()[1]) * 1024
        for header in lines
        if header.endswith(str(path))
    )


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedding and a head of 32 MB each, and 3 MB."""
    spec = Spec("7.0", n_embd=256, head_size=64, n_vocab=65536, dim_ffn=1024)
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    return write_safetensors(path, random_weights(spec), "fp16")


@pytest.mark.parametrize("dtype", ["auto", "bf16", "int8", "mm8", "int4"])
def test_a_loaded_file_leaves_memory(dtype: wkv.DTypeName, large_file: Path) -> None:
    """The device has its copy: the mapping's pages are dropped, piece by piece."""
    seen: list[int] = []
    loaded = threading.Event()

    def watch() -> None:
        while not loaded.wait(0.002):
            seen.append(resident(large_file))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        model = wkv.Model.load(large_file, device="cuda", dtype=dtype, threads=2)
    finally:
        loaded.set()
        watcher.join()
    assert resident(large_file) < 8 << 20
    assert max(seen) < 24 << 20
    assert np.isfinite(model.forward([1], model.new_state())).all()


def test_no_such_device() -> None:
    with pytest.raises(wkv.UnsupportedError, match="cuda:7"):
        wkv.Model.synthetic("v4:1x64:100", device="cuda:7")


@pytest.mark.skipif(not ON_SHIM, reason="the shim can be any architecture")
def test_a_device_without_code_is_refused() -> None:
    program = """
import wkv
print(*(d.reason for d in wkv.devices() if d.name == "cuda:0"))
try:
    wkv.Model.synthetic("v4:1x64:100", device="cuda")
except wkv.UnsupportedError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"WKV_SHIM_SM": "61"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("it is an sm_61 and this build has code for sm_75, sm_80,")
    assert lines[1] == "[cuda:0] " + lines[0]
