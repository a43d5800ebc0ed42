"""Tuned initial states: each version's orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wkv
from wkv import _core

safetensors = pytest.importorskip("safetensors.numpy")


def tuned(model: wkv.Model, path: Path) -> dict[str, np.ndarray]:
    info = model.info
    rng = np.random.default_rng(7)
    tensors = {
        f"blocks.{i}.att.time_state": rng.normal(
            size=(info.n_head, info.head_size, info.head_size)
        ).astype(np.float32)
        for i in range(info.n_layer)
    }
    safetensors.save_file(tensors, path)
    return tensors


def test_v6_agrees_with_a_state_merged_into_the_weights(golden: Path, tmp_path: Path) -> None:
    file = _core.Checkpoint.open(golden / "v6_time_state" / "model.safetensors")
    tensors = {name: file.get(name) for name in file.names()}
    states = {name: tensors.pop(name) for name in list(tensors) if "time_state" in name}
    assert states
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    safetensors.save_file(states, tmp_path / "tuned.safetensors")
    merged = wkv.Model.load(golden / "v6_time_state" / "model", device="cpu", dtype="fp32")
    plain = wkv.Model.load(tmp_path / "model", device="cpu", dtype="fp32")
    want = merged.new_state()
    got = plain.load_tuned_state(tmp_path / "tuned.safetensors")
    assert got.position == 0
    for name in want.keys():  # noqa: SIM118
        np.testing.assert_array_equal(got[name], want[name])
    np.testing.assert_allclose(
        plain.forward([1, 2], got), merged.forward([1, 2], want), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("folder", ["v5_2", "v6", "v7"])
def test_orientation(golden: Path, tmp_path: Path, folder: str) -> None:
    model = wkv.Model.load(golden / folder / "model.safetensors", device="cpu")
    tensors = tuned(model, tmp_path / "t.safetensors")
    state = model.load_tuned_state(tmp_path / "t.safetensors")
    for i in range(model.info.n_layer):
        want = tensors[f"blocks.{i}.att.time_state"]
        if folder != "v7":
            want = want.transpose(0, 2, 1)
        np.testing.assert_array_equal(state[f"blocks.{i}.att.wkv"], want)
        assert not state[f"blocks.{i}.att.shift"].any()


@pytest.mark.parametrize("folder", ["v5_1", "v5_2", "v6", "v7"])
def test_in_the_checkpoint_itself(golden: Path, tmp_path: Path, folder: str) -> None:
    file = _core.Checkpoint.open(golden / folder / "model.safetensors")
    tensors = {name: file.get(name) for name in file.names()}
    model = wkv.Model.load(golden / folder / "model.safetensors", device="cpu")
    tensors |= tuned(model, tmp_path / "t.safetensors")
    safetensors.save_file(tensors, tmp_path / "merged.safetensors")
    merged = wkv.Model.load(tmp_path / "merged", device="cpu").new_state()
    state = model.load_tuned_state(tmp_path / "t.safetensors")
    for name in state.keys():  # noqa: SIM118
        np.testing.assert_array_equal(merged[name], state[name])


def test_pth(golden: Path, tmp_path: Path, model: wkv.Model) -> None:
    torch = pytest.importorskip("torch")
    tensors = tuned(model, tmp_path / "t.safetensors")
    torch.save({n: torch.from_numpy(t).bfloat16() for n, t in tensors.items()}, tmp_path / "t.pth")
    state = model.load_tuned_state(tmp_path / "t.pth")
    want = tensors["blocks.0.att.time_state"]
    np.testing.assert_allclose(state["blocks.0.att.wkv"], want, rtol=0.01)


def test_as_the_initial_state(golden: Path, tmp_path: Path) -> None:
    model = wkv.Model.load(golden / "v7" / "model", device="cpu", dtype="fp32")
    tuned(model, tmp_path / "t.safetensors")
    before = model.forward([1], model.new_state())
    state = model.load_tuned_state(tmp_path / "t.safetensors")
    model.set_initial_state(state)
    want = model.forward([1], state)
    np.testing.assert_array_equal(model.forward([1], model.new_state()), want)
    np.testing.assert_array_equal(model.forward([1], model.new_state(record=True)), want)
    model.set_initial_state(None)
    np.testing.assert_array_equal(model.forward([1], model.new_state()), before)


def test_refusals(golden: Path, tmp_path: Path, model: wkv.Model, v4: wkv.Model) -> None:
    tensors = tuned(model, tmp_path / "t.safetensors")
    bad = dict(tensors)
    bad.pop("blocks.1.att.time_state")
    bad["blocks.0.att.time_state"] = bad["blocks.0.att.time_state"][:, :-1].copy()
    bad["blocks.99.att.time_state"] = tensors["blocks.0.att.time_state"]
    safetensors.save_file(bad, tmp_path / "bad.safetensors")
    with pytest.raises(wkv.ModelFormatError) as caught:
        model.load_tuned_state(tmp_path / "bad.safetensors")
    for words in ("blocks.1.att", "blocks.0.att", "blocks.99"):
        assert words in str(caught.value)
    with pytest.raises(wkv.ModelFormatError, match="no heads"):
        v4.load_tuned_state(tmp_path / "t.safetensors")
    with pytest.raises(FileNotFoundError):
        model.load_tuned_state(tmp_path / "missing")
    with pytest.raises(ValueError, match="RWKV-4"):
        model.set_initial_state(v4.new_state())
