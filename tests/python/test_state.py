"""State: a value."""

from __future__ import annotations

import copy
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wkv
from wkv.state import StorageName

IDS = [3, 1, 4, 1, 5]


@pytest.fixture
def state(model: wkv.Model) -> wkv.State:
    state = model.new_state()
    model.forward(IDS, state)
    return state


def same(a: wkv.State, b: wkv.State) -> bool:
    return a.position == b.position and all(np.array_equal(a[k], b[k]) for k in a.keys())  # noqa: SIM118


def test_copies_go_separate_ways(model: wkv.Model, state: wkv.State) -> None:
    for other in (state.copy(), copy.copy(state), copy.deepcopy(state), *state.fork(2)):
        assert same(state, other)
        model.forward([7], other)
        assert not same(state, other)
    assert state.position == len(IDS)


def test_parts(model: wkv.Model, state: wkv.State) -> None:
    info = model.info
    assert state.keys()[:3] == ["blocks.0.att.shift", "blocks.0.att.wkv", "blocks.0.ffn.shift"]
    assert len(state.keys()) == 3 * info.n_layer
    part = state["blocks.1.att.wkv"]
    assert part.shape == (info.n_head, info.head_size, info.head_size)
    assert part.shape == state.shape("blocks.1.att.wkv")
    assert part.dtype == np.float32
    part[:] = 0  # a copy
    assert state["blocks.1.att.wkv"].any()
    assert "blocks.1.att.wkv" in state
    assert "blocks.9.att.wkv" not in state
    assert state.nbytes == sum(4 * state[name].size for name in state.keys())  # noqa: SIM118
    assert f"position={len(IDS)}" in repr(state)


def test_names_of_parts(state: wkv.State) -> None:
    assert list(state) == state.keys()
    assert set(dict(state)) == set(state.keys())  # type: ignore[call-overload]
    for use in (lambda: state[0], lambda: state.__setitem__(0, 1.0)):  # type: ignore[index]
        with pytest.raises(TypeError, match="name of a part must be a str, got 0"):
            use()


def test_assignment(model: wkv.Model, state: wkv.State) -> None:
    fresh = model.new_state()
    for name in state.keys():  # noqa: SIM118
        fresh[name] = state[name]
    np.testing.assert_array_equal(model.forward([9], fresh), model.forward([9], state.copy()))
    fresh["blocks.0.att.shift"] = [0.5] * model.info.n_embd  # anything array-like
    assert (fresh["blocks.0.att.shift"] == 0.5).all()
    fresh["blocks.0.att.shift"] = np.arange(model.info.n_embd, dtype=np.int64)[::-1]
    assert fresh["blocks.0.att.shift"][-1] == 0
    with pytest.raises(KeyError, match="nonsense"):
        fresh["nonsense"]
    with pytest.raises(KeyError, match="nonsense"):
        fresh["nonsense"] = [1]
    with pytest.raises(KeyError):
        fresh.shape("nonsense")
    with pytest.raises(ValueError, match="shape"):
        fresh["blocks.0.att.wkv"] = np.zeros(3)
    with pytest.raises(ValueError, match="shape"):
        fresh["blocks.0.att.wkv"] = np.zeros((*fresh["blocks.0.att.wkv"].shape[::-1], 1))


def test_bytes(model: wkv.Model, state: wkv.State) -> None:
    data = state.to_bytes()
    for kind in (bytes, bytearray, memoryview):
        again = model.state_from_bytes(kind(data))  # type: ignore[arg-type]
        assert same(state, again)
        assert again.to_bytes() == data


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_compressed_bytes(
    model: wkv.Model, v4: wkv.Model, state: wkv.State, tmp_path: Path, dtype: StorageName
) -> None:
    data = state.to_bytes(dtype)
    assert len(data) < len(state.to_bytes()) * (0.54 if dtype == "fp16" else 0.31)
    again = model.state_from_bytes(data)
    assert again.position == state.position
    for name in state.keys():  # noqa: SIM118
        want, got = state[name], again[name]
        # Stored key-major, shown value-major: a row is a column of what is shown.
        largest = np.abs(want).max(axis=-2 if want.ndim > 1 else -1, keepdims=True)
        coarse = dtype == "int8" and want.ndim > 1
        allowed = largest / 254 if coarse else np.abs(want) / 2**11 + largest / 2**25
        assert (np.abs(got - want) <= allowed * 1.0001).all(), name
    again.save(tmp_path / "a.state", dtype)
    assert (tmp_path / "a.state").stat().st_size == len(data)
    assert model.load_state(tmp_path / "a.state").position == state.position
    recorded = model.new_state(record=True)
    model.forward(IDS, recorded)
    recorded.save(tmp_path / "b.state", dtype)
    assert model.load_state(tmp_path / "b.state").tokens == IDS
    for bad in (data[:-1], data + b"x", data[:70] + bytes([data[70] ^ 1]) + data[71:]):
        with pytest.raises(ValueError, match=r"\[state\]"):
            model.state_from_bytes(bad)
    with pytest.raises(ValueError, match="RWKV-7"):
        v4.state_from_bytes(data)


def test_compressed_zeros_and_what_only_fp32_stores(model: wkv.Model, v4: wkv.Model) -> None:
    for other in (model, v4):
        fresh = other.new_state()
        for dtype in ("fp16", "int8"):
            assert same(fresh, other.state_from_bytes(fresh.to_bytes(dtype)))  # type: ignore[arg-type]
    fresh = v4.new_state()
    v4.forward(IDS, fresh)
    again = v4.state_from_bytes(fresh.to_bytes("int8"))
    assert np.array_equal(again["blocks.0.att.pp"], fresh["blocks.0.att.pp"])  # an exponent
    fresh["blocks.0.att.aa"] = [np.nan] * v4.info.n_embd
    with pytest.raises(ValueError, match=r"blocks\.0\.att\.aa.*only fp32"):
        fresh.to_bytes("fp16")
    assert v4.state_from_bytes(fresh.to_bytes()).position == len(IDS)
    with pytest.raises(ValueError, match="fp32, fp16 or int8, not as bf16"):
        fresh.to_bytes("bf16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype"):
        fresh.to_bytes("nonsense")  # type: ignore[arg-type]
    detached = pickle.loads(pickle.dumps(fresh))
    with pytest.raises(ValueError, match="pickle"):
        detached.to_bytes("fp16")


def test_bytes_that_are_no_state(model: wkv.Model, v4: wkv.Model, state: wkv.State) -> None:
    data = state.to_bytes()
    for bad in (b"", b"x", data[:-1], data + b"x", data[:40], bytes(len(data))):
        with pytest.raises(ValueError, match=r"\[state\]"):
            model.state_from_bytes(bad)
    for i in (70, len(data) - 1):
        with pytest.raises(ValueError, match="checksum"):
            model.state_from_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
    with pytest.raises(ValueError, match="RWKV-7"):
        v4.state_from_bytes(data)
    with pytest.raises(TypeError):
        model.state_from_bytes("text")  # type: ignore[arg-type]


def test_files(model: wkv.Model, state: wkv.State, tmp_path: Path) -> None:
    path = tmp_path / "a.state"
    state.save(path)
    assert same(state, model.load_state(path))
    assert path.read_bytes() == state.to_bytes()
    assert os.listdir(tmp_path) == ["a.state"]
    model.forward([1], state)
    state.save(str(path))  # overwrites
    assert same(state, model.load_state(str(path)))
    with pytest.raises(FileNotFoundError):
        model.load_state(tmp_path / "b.state")
    with pytest.raises(FileNotFoundError):
        state.save(tmp_path / "missing" / "a.state")


def test_files_that_cannot_be_written(state: wkv.State, tmp_path: Path) -> None:
    """The error names the file that was asked for; nothing is left behind."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, kind in (
        (tmp_path / "none" / "a.state", FileNotFoundError),
        (folder, IsADirectoryError),
        (tmp_path / ("x" * 300), OSError),
    ):
        with pytest.raises(kind) as caught:
            state.save(path)
        assert caught.value.filename == str(path)
        assert caught.value.filename2 is None
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(folder) == []


def test_a_link_to_a_state(model: wkv.Model, state: wkv.State, tmp_path: Path) -> None:
    """The file that a link points to is written; the link stays."""
    (tmp_path / "link").symlink_to("target")
    state.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert model.load_state(tmp_path / "target").position == state.position


def test_saving_leaves_the_mask_of_the_process(state: wkv.State, tmp_path: Path) -> None:
    """A mask changed for a moment would, with two threads, be left at 0."""
    before = os.umask(0o027)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(os, "umask")
            state.save(tmp_path / "a")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_an_interrupted_save_leaves_the_old_file(
    state: wkv.State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.state"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        state.save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.state"]


def test_a_save_through_a_link_keeps_the_link(
    model: wkv.Model, state: wkv.State, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "a.state"
    target.write_bytes(b"old")
    link = tmp_path / "link.state"
    link.symlink_to(target)
    state.save(link)
    assert link.is_symlink()
    assert same(state, model.load_state(target))
    assert os.listdir(tmp_path / "disk") == ["a.state"]
    mask = os.umask(0o027)
    try:
        state.save(tmp_path / "b.state")
        state.save(tmp_path / "b.state")
    finally:
        os.umask(mask)
    assert (tmp_path / "b.state").stat().st_mode & 0o777 == 0o640


def test_a_killed_process_leaves_a_whole_file(
    state: wkv.State, model: wkv.Model, golden: Path, tmp_path: Path
) -> None:
    code = """
import sys, wkv
model = wkv.Model.load(sys.argv[1], device="cpu", dtype="fp32")
state = model.new_state()
while True:
    model.forward([1], state)
    state.save(sys.argv[2])
    print(state.position, flush=True)
"""
    path = tmp_path / "a.state"
    state.save(path)
    command = [sys.executable, "-c", code, str(golden / "v7" / "model.safetensors"), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()
    assert model.load_state(path).position >= seen[-1] == 20


def test_tokens_are_recorded_on_request(model: wkv.Model, tmp_path: Path) -> None:
    state = model.new_state(record=True)
    assert state.tokens == []
    model.forward(IDS, state)
    model.forward(np.array([7, 8]), state, logits="none")
    model.forward_batch([[9], (1, 2)], [state, model.new_state()])
    model.forward((i for i in [4]), state)
    assert state.tokens == [*IDS, 7, 8, 9, 4]
    assert state.position == len(state.tokens)
    with pytest.raises(ValueError, match="vocabulary"):
        model.forward([10**6], state)
    assert state.position == len(state.tokens)
    state.save(tmp_path / "a.state")
    again = model.load_state(tmp_path / "a.state")
    assert again.tokens == state.tokens
    assert same(state, again)
    assert state.copy().tokens == state.tokens
    assert pickle.loads(pickle.dumps(state)).tokens == state.tokens
    assert model.new_state().tokens is None
    assert model.state_from_bytes(state.to_bytes()).tokens is None


def test_a_file_that_promises_too_many_tokens(
    model: wkv.Model, state: wkv.State, tmp_path: Path
) -> None:
    path = tmp_path / "a.state"
    path.write_bytes(state.to_bytes() + (2**60).to_bytes(8, "little") + bytes(4) + b"WKVTOKNS")
    with pytest.raises(ValueError, match="tokens follow"):
        model.load_state(path)


def test_damaged_tokens_are_refused(model: wkv.Model, tmp_path: Path) -> None:
    state = model.new_state(record=True)
    model.forward(IDS, state)
    path = tmp_path / "a.state"
    state.save(path)
    data = path.read_bytes()
    for i in range(len(state.to_bytes()), len(data)):  # tokens, their number, checksum and mark
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        with pytest.raises(ValueError, match=r"\[state\]"):
            model.load_state(path)


def test_pickle(model: wkv.Model, v4: wkv.Model, state: wkv.State) -> None:
    again = pickle.loads(pickle.dumps(state))
    assert again.position == state.position
    assert again.keys() == state.keys()
    assert again.to_bytes() == state.to_bytes()
    with pytest.raises(ValueError, match="pickle"):
        again["blocks.0.att.wkv"]
    twin = copy.deepcopy(again)
    np.testing.assert_array_equal(model.forward([9], again), model.forward([9], state.copy()))
    assert again["blocks.0.att.wkv"].any()
    with pytest.raises(ValueError, match="RWKV-7"):
        v4.forward([9], twin)
    rows = model.forward_batch([[9]], [twin])
    np.testing.assert_allclose(rows[0], model.forward([9], state), rtol=1e-5, atol=1e-5)


def test_a_state_outlives_its_model(golden: Path) -> None:
    model = wkv.Model.load(golden / "v7" / "model", device="cpu", dtype="fp32")
    state = model.new_state()
    model.forward(IDS, state)
    data = state.to_bytes()
    del model
    assert state.copy().to_bytes() == data


def test_a_merged_model_that_kept_its_norms_is_another(golden: Path, tmp_path: Path) -> None:
    """LoRA merged elsewhere: the same sizes and norms, matrices changed by 1 %."""
    safetensors = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(1)
    for folder in ("v1", "v3_ffnPre_nohead_qk", "v4", "v6", "v7"):
        file = wkv._core.Checkpoint.open(golden / folder / "model.safetensors")
        tensors = {name: file.get(name).astype(np.float32) for name in file.names()}
        paths = []
        for number, scale in enumerate((0.0, 0.01)):
            for name, values in tensors.items():
                if name.endswith("key.weight"):
                    noise = rng.normal(size=values.shape).astype(np.float32)
                    tensors[name] = values + scale * values.std() * noise
            paths.append(tmp_path / f"{folder}-{number}.safetensors")
            safetensors.save_file(tensors, paths[-1])
        base, merged = (wkv.Model.load(path, device="cpu") for path in paths)
        data = base.new_state().to_bytes()
        with pytest.raises(ValueError, match="another model of the same size"):
            merged.state_from_bytes(data)
        stored = wkv.Model.load(golden / folder / "model", device="cpu")  # in fp32 or bf16
        assert stored.state_from_bytes(data).position == 0
        for dtype in ("fp16", "bf16", "int8", "int4", "mm8"):
            form = tmp_path / f"{folder}-{dtype}.safetensors"
            wkv.convert(paths[0], form, dtype)
            assert wkv.Model.load(form, device="cpu").state_from_bytes(data).position == 0, dtype
    for seed in (1, 2):
        state = wkv.Model.synthetic("v7:1x64:9", device="cpu", seed=seed).new_state()
        other = wkv.Model.synthetic("v7:1x64:9", device="cpu", seed=2)
        if seed == 2:
            assert other.state_from_bytes(state.to_bytes()).position == 0
        else:
            with pytest.raises(ValueError, match="another model"):
                other.state_from_bytes(state.to_bytes())


def test_the_same_state_under_other_weights(golden: Path, state: wkv.State) -> None:
    """fp32 and bf16 forms of one model understand each other's states."""
    other = wkv.Model.load(golden / "v7" / "model", device="cpu", dtype="bf16")
    assert other.state_from_bytes(state.to_bytes()).position == state.position
