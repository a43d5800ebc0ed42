"""PrefixCache: the longest known prefix, a budget, and a directory."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import wkv
from wkv.state import StorageName


def read(model: wkv.Model, ids: list[int]) -> wkv.State:
    state = model.new_state()
    model.forward(ids, state, logits="none")
    return state


def test_the_longest_prefix_wins(model: wkv.Model) -> None:
    cache = wkv.PrefixCache(model)
    state, known = cache.get([1, 2, 3])
    assert (state.position, known) == (0, 0)
    for ids in ([1], [1, 2, 3], [1, 2, 3, 4, 5], [9, 2, 3]):
        cache.put(ids, read(model, ids))
    for ids, want in {
        (1, 2, 3, 4): 3,
        (1, 2): 1,
        (1, 2, 3, 4, 5): 5,
        (2, 1): 0,
        (9, 2, 3, 1): 3,
    }.items():
        state, known = cache.get(ids)
        assert known == state.position == want
        assert want == 0 or state.to_bytes() == read(model, list(ids[:want])).to_bytes()
    stats = cache.stats
    assert (stats.hits, stats.misses, stats.tokens_saved) == (4, 2, 12)
    assert stats.states == len(cache) == 4
    assert stats.nbytes == 4 * state.nbytes
    with pytest.raises(ValueError, match="not these 2"):
        cache.put([1, 2], read(model, [1]))


def test_what_comes_out_is_the_callers_own(model: wkv.Model) -> None:
    cache = wkv.PrefixCache(model)
    state = read(model, [1, 2])
    cache.put([1, 2], state)
    before = state.to_bytes()
    model.forward([3], state)
    out, _ = cache.get([1, 2])
    model.forward([3], out)
    assert cache.get([1, 2])[0].to_bytes() == before


def test_forward(model: wkv.Model) -> None:
    cache = wkv.PrefixCache(model)
    rng = random.Random(1)
    document = [rng.randrange(model.info.n_vocab) for _ in range(50)]
    for question in ([1], [1, 2], [3], [1, 2]):
        logits, state = cache.forward(document + question)
        want = model.new_state()
        np.testing.assert_allclose(
            logits, model.forward(document + question, want), rtol=1e-4, atol=1e-5
        )
        assert state.position == want.position
        if not cache.stats.hits:
            cache.put(document, read(model, document))
    assert cache.stats.tokens_saved >= 3 * 50


def test_eviction(model: wkv.Model) -> None:
    size = model.new_state().nbytes
    cache = wkv.PrefixCache(model, max_bytes=3 * size)
    for i in range(5):
        cache.put([i], read(model, [i]))
        cache.get([0])  # keeps it young
    assert len(cache) == 3
    assert cache.stats.nbytes == 3 * size
    assert [cache.get([i])[1] for i in range(5)] == [1, 0, 0, 1, 1]
    none = wkv.PrefixCache(model, max_bytes=0)
    none.put([1], read(model, [1]))
    assert none.get([1])[1] == 0
    cache.clear()
    assert len(cache) == cache.stats.nbytes == 0
    assert cache.get([0])[1] == 0


@pytest.mark.parametrize(("dtype", "smaller"), [("fp16", 1.9), ("int8", 3.3)])
def test_compressed(model: wkv.Model, tmp_path: Path, dtype: StorageName, smaller: float) -> None:
    size = model.new_state().nbytes
    cache = wkv.PrefixCache(model, max_bytes=size, directory=tmp_path, dtype=dtype)
    state = read(model, [1, 2, 3])
    cache.put([1, 2, 3], state)
    assert cache.stats.nbytes < size / smaller
    assert cache.stats.nbytes == len(state.to_bytes(dtype))
    found, known = cache.get([1, 2, 3, 4])
    assert known == found.position == 3
    assert found.to_bytes() == model.state_from_bytes(state.to_bytes(dtype)).to_bytes()
    # Another process, which keeps them otherwise, shares the folder.
    again, known = wkv.PrefixCache(model, directory=tmp_path).get([1, 2, 3])
    assert known == 3
    assert again.to_bytes() == found.to_bytes()
    for i in range(9):
        cache.put([i], read(model, [i]))
    assert cache.stats.nbytes <= size
    with pytest.raises(ValueError, match="dtype"):
        wkv.PrefixCache(model, dtype="bf16")  # type: ignore[arg-type]


def test_directory(model: wkv.Model, v4: wkv.Model, tmp_path: Path) -> None:
    cache = wkv.PrefixCache(model, directory=tmp_path)
    state = read(model, [1, 2, 3])
    cache.put([1, 2, 3], state)
    again = wkv.PrefixCache(model, directory=tmp_path)
    found, known = again.get([1, 2, 3, 4])
    assert known == 3
    assert found.to_bytes() == state.to_bytes()
    assert len(again) == 1
    again.clear()
    assert again.get([1, 2, 3])[1] == 3
    assert wkv.PrefixCache(v4, directory=tmp_path).get([1, 2, 3])[1] == 0
    # A damaged file counts as absent, so does one that is no state; others are left alone.
    (file,) = tmp_path.glob("*/*.state")
    data = file.read_bytes()
    (file.parent / "notes.txt").write_text("mine")
    (file.parent / "x-y.state").write_text("no length")
    for damage in (data[:-1], b"", b"nonsense", data[:-1] + bytes([data[-1] ^ 1])):
        file.write_bytes(damage)
        third = wkv.PrefixCache(model, directory=tmp_path)
        assert third.get([1, 2, 3])[1] == 0
        assert third.get([1, 2, 3])[1] == 0
    third.put([1, 2, 3], state)  # overwrites it
    assert wkv.PrefixCache(model, directory=tmp_path).get([1, 2, 3])[1] == 3


def test_another_initial_state_is_another_beginning(golden: Path, tmp_path: Path) -> None:
    model = wkv.Model.load(golden / "v7" / "model", device="cpu", dtype="fp32")
    cache = wkv.PrefixCache(model, directory=tmp_path)
    plain, _ = cache.forward([1, 2, 3])
    tuned = model.new_state()
    rng = np.random.default_rng(1)
    tuned["blocks.0.att.wkv"] = rng.normal(size=tuned.shape("blocks.0.att.wkv"))
    model.set_initial_state(tuned)
    for one in (cache, wkv.PrefixCache(model, directory=tmp_path)):
        assert one.get([1, 2, 3])[1] == 0
    want = model.forward([1, 2, 3], model.new_state())
    np.testing.assert_allclose(cache.forward([1, 2, 3])[0], want, rtol=1e-4, atol=1e-5)
    assert np.abs(want - plain).max() > 1e-3
    assert cache.get([1, 2, 3])[1] == 3
    # What was read before may be the initial state, too.
    model.set_initial_state(read(model, [7, 8]))
    _, state = cache.forward([1, 2, 3])
    assert state.position == 5
    found, known = cache.get([1, 2, 3, 4])
    assert (known, found.position) == (3, 5)
    with pytest.raises(ValueError, match="read 3 tokens, not these 2"):
        cache.put([1, 2], state)
    model.set_initial_state(None)
    assert cache.get([1, 2, 3])[0].position == 3


def test_a_time_state_in_the_checkpoint_is_another_beginning(golden: Path, tmp_path: Path) -> None:
    """Its fingerprint is that of the checkpoint without: the weights are the same."""
    safetensors = pytest.importorskip("safetensors.numpy")
    source = golden / "v6_time_state" / "model.safetensors"
    file = wkv._core.Checkpoint.open(source)
    tensors = {name: file.get(name) for name in file.names() if "time_state" not in name}
    safetensors.save_file(tensors, tmp_path / "plain.safetensors")
    models = [wkv.Model.load(path, device="cpu") for path in (source, tmp_path / "plain")]
    wkv.PrefixCache(models[0], directory=tmp_path).forward([1, 2, 3])
    assert wkv.PrefixCache(models[0], directory=tmp_path).get([1, 2, 3])[1] == 3
    assert wkv.PrefixCache(models[1], directory=tmp_path).get([1, 2, 3])[1] == 0


def test_against_a_plain_search(model: wkv.Model) -> None:
    """Random puts, gets and evictions give what a list of everything kept would."""
    rng = random.Random(3)
    size = model.new_state().nbytes
    cache = wkv.PrefixCache(model, max_bytes=6 * size)
    kept: list[tuple[int, ...]] = []
    for _ in range(300):
        ids = tuple(rng.randrange(2) for _ in range(rng.randrange(1, 6)))
        if rng.random() < 0.3:
            cache.put(ids, read(model, list(ids)))
            kept = [k for k in kept if k != ids] + [ids]
            kept = kept[-6:]
        else:
            _, known = cache.get(ids)
            best = max((k for k in kept if ids[: len(k)] == k), key=len, default=())
            assert known == len(best)
            if best:
                kept = [k for k in kept if k != best] + [best]


def test_threads(model: wkv.Model) -> None:
    cache = wkv.PrefixCache(model, max_bytes=4 * model.new_state().nbytes)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(50):
                cache.forward([rng.randrange(3) for _ in range(rng.randrange(1, 6))])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(cache) <= 4
