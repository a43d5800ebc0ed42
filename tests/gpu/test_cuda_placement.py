"""Models whose layers lie on several devices: the same numbers, whatever the cut.

With two devices of the host shim (``WKV_CUDA_PLUGIN=.../libwkv_cuda_shim.so``) the cuts go between
them and the CPU; without a CUDA device, between two stages of the CPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import wkv
from models.specs import SPECS
from reference import Array
from reference.files import write_safetensors
from reference.random_weights import Spec, random_weights

os.environ.setdefault("WKV_SHIM_DEVICES", "2")
DEVICES = [d.name for d in wkv.devices() if d.usable and d.name != "cpu"]
ON_SHIM = any("shim" in d.description for d in wkv.devices())
ONE_EACH = list({spec.version: spec for spec in SPECS}.values())
CUTS = ["cpu *1 -> cpu"]
if DEVICES:
    CUTS += ["cuda *1 -> cpu", "cpu *1 -> cuda", "cuda *1 -> cuda stream"]
if len(DEVICES) > 1:
    CUTS += ["cuda:1 *1 -> cpu *1 -> cuda:0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        spec.version: write_safetensors(
            folder / f"{spec.version}.safetensors", random_weights(spec), "fp32"
        )
        for spec in ONE_EACH
    }


def relative(got: Array, want: Array) -> float:
    return float(np.abs(got - want).max() / max(1.0, float(np.abs(want).max())))


def tokens_of(spec: Spec, n: int, seed: int = 0) -> list[int]:
    n = min(n, spec.ctx_len // 2) if spec.bounded else n
    ids: list[int] = np.random.default_rng((n, seed)).integers(0, spec.n_vocab, n).tolist()
    return ids


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("spec", ONE_EACH, ids=str)
def test_any_cut_gives_the_same(spec: Spec, cut: str, files: dict[str, Path]) -> None:
    """Prefill, then tokens one by one, from states that move to and fro."""
    whole = wkv.Model.load(files[spec.version], device="cpu", dtype="fp32")
    parts = wkv.Model.load(files[spec.version], device=cut, dtype="fp32")
    tolerance = 0.0 if cut.count("cpu") == 2 else 2e-5
    prompt, more = tokens_of(spec, 9), tokens_of(spec, 3, seed=1)
    here, there = whole.new_state(), parts.new_state()
    want = whole.forward(prompt, here, logits="all")
    assert relative(parts.forward(prompt, there, logits="all"), want) <= tolerance
    moved = parts.state_from_bytes(here.to_bytes())
    assert moved.to_bytes() == here.to_bytes()
    copy = there.copy()
    for token in more:
        want = whole.forward([token], here)
        for state in (there, moved, copy):
            assert relative(parts.forward([token], state), want) <= tolerance
    for name in here.keys():  # noqa: SIM118
        assert relative(np.asarray(there[name]), np.asarray(here[name])) <= tolerance
    back = whole.state_from_bytes(there.to_bytes())
    want = whole.forward(prompt[:1], here)
    assert relative(whole.forward(prompt[:1], back), want) <= tolerance


@pytest.mark.parametrize("cut", [*CUTS, *DEVICES[:1]])
def test_ragged_batches_hidden_states_and_vectors(cut: str, files: dict[str, Path]) -> None:
    spec = next(s for s in ONE_EACH if s.version == "7.0")
    whole = wkv.Model.load(files[spec.version], device="cpu", dtype="fp32")
    parts = wkv.Model.load(files[spec.version], device=cut, dtype="fp32")
    streams = [tokens_of(spec, n, seed=n) for n in (1, 5, 2)]
    results = []
    for model in (whole, parts):
        states = [model.new_state() for _ in streams]
        rows = [np.concatenate(model.forward_batch(streams, states, logits="all"))]
        rows += [np.stack(model.forward_batch([[1], [2], [3]], states)) for _ in range(4)]
        rows.append(model.hidden([streams[1]], [model.new_state()], layers=[0, 1], rows="all"))
        vectors = np.random.default_rng(3).normal(size=(4, spec.n_embd)).astype(np.float32)
        rows.append(model.forward_vectors(vectors, model.new_state(), logits="all"))
        results.append(rows)
    for want, got in zip(*results, strict=True):
        assert relative(np.asarray(got), np.asarray(want)) <= 2e-5


def test_a_state_outlives_its_model(files: dict[str, Path]) -> None:
    """Two models of one placement share states; the first one's memory stays."""
    path, cut = files["7.0"], CUTS[-1]
    first = wkv.Model.load(path, device=cut, dtype="fp32")
    state = first.new_state()
    first.forward([1, 2, 3], state)
    other = first.new_state()
    del first
    blob = state.to_bytes()
    second = wkv.Model.load(path, device=cut, dtype="fp32")
    assert np.array_equal(
        second.forward([4], state), second.forward([4], second.state_from_bytes(blob))
    )
    assert np.isfinite(second.forward([4], other)).all()


def test_stages_have_their_own_dtype(files: dict[str, Path]) -> None:
    path = files["7.0"]
    mixed = wkv.Model.load(path, device="cpu fp32 *1 -> cpu int8", dtype="auto")
    plain, eight = (wkv.Model.load(path, device="cpu", dtype=d) for d in ("fp32", "int8"))
    logits = [m.forward([1, 2, 3], m.new_state()) for m in (mixed, plain, eight)]
    assert not np.array_equal(logits[0], logits[1])
    assert not np.array_equal(logits[0], logits[2])
    assert relative(logits[0], logits[1]) <= 0.1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cpu *1 -> cpu *1", "places 2 layers"),
        ("cpu *9 -> cpu *9", "places 18 layers"),
        ("cpu -> cpu", "two stages without a number"),
        ("cpu *1 -> ", "without a device"),
        ("cpu *1 fp32 -> cpu", "fp32"),
        ("cpu fp99 *1 -> cpu", "fp99"),
        ("cpu *1 -> tpu", "unknown device 'tpu'"),
    ],
)
def test_what_cannot_be_placed_is_said(text: str, words: str, files: dict[str, Path]) -> None:
    with pytest.raises((ValueError, wkv.UnsupportedError), match=words):
        wkv.Model.load(files["7.0"], device=text)


@pytest.mark.skipif(not ON_SHIM, reason="the shim's memory can be made small")
def test_streams_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory is MemoryError with figures and harms nobody; streamed, the model fits."""
    spec = "v7:2x256:300"  # 3.1 MB of matrices in fp16
    resident = wkv.Model.synthetic(spec, device="cuda", stored="fp16")
    prompt = [1, 2, 3]
    want = resident.forward(prompt, resident.new_state(), logits="all")
    monkeypatch.setenv("WKV_SHIM_MEMORY", str(3 << 20))
    with pytest.raises(MemoryError, match=r"cuda:1\] cannot allocate \d+ bytes: \d+ of 3145728"):
        wkv.Model.synthetic(spec, device="cuda:1", stored="fp16")
    assert np.array_equal(resident.forward(prompt, resident.new_state(), logits="all"), want)
    streamed = wkv.Model.synthetic(spec, device="cuda:1 stream", stored="fp16")
    for _ in range(3):  # from the second step on as graphs
        got = streamed.forward(prompt, streamed.new_state(), logits="all")
        assert np.array_equal(got, want)


@pytest.mark.skipif(not DEVICES, reason="no usable CUDA device")
def test_auto_is_the_first_usable_gpu() -> None:
    assert wkv.Model.synthetic("v7:1x64:100").device == DEVICES[0]
    # Models that look back run on the CPU alone.
    assert wkv.Model.synthetic("v1:1x64:100").device == "cpu"
    with pytest.raises(wkv.ModelFormatError):
        wkv.Model.load(Path(__file__), device="auto")


@pytest.mark.skipif(not ON_SHIM, reason="the shim's memory can be made small")
def test_auto_is_the_cpu_for_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = "v7:2x256:300"
    here = wkv.Model.synthetic(spec, device="cpu", stored="fp16")
    monkeypatch.setenv("WKV_SHIM_MEMORY", str(3 << 20))
    seen: list[tuple[int, int]] = []
    model = wkv.Model.synthetic(spec, stored="fp16", progress=lambda *at: seen.append(at))
    assert model.device == "cpu"
    assert seen[-1][0] == seen[-1][1]
    want = here.forward([1, 2, 3], here.new_state())
    assert np.array_equal(model.forward([1, 2, 3], model.new_state()), want)
    with pytest.raises(MemoryError):
        wkv.Model.synthetic(spec, device="cuda", stored="fp16")
