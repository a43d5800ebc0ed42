"""Model: loading, forward in all its forms, what goes in and what comes out."""

from __future__ import annotations

import array
import dataclasses
import sys
from pathlib import Path
from types import FrameType
from typing import get_args

import numpy as np
import pytest
import wkv
from wkv.model import MatmulPrecision

IDS = [1, 2, 3, 5, 8]


def last(model: wkv.Model, ids: object) -> np.ndarray:
    return model.forward(ids, model.new_state())  # type: ignore[arg-type]


def test_info(model: wkv.Model, v4: wkv.Model) -> None:
    assert model.info.version == "7.0"
    assert model.info.n_head * model.info.head_size == model.info.n_embd
    assert model.info.context_limit is None
    assert v4.info.version.startswith("4")
    assert v4.info.n_head == v4.info.head_size == 0
    assert model.device == "cpu"
    assert model.dtype == "fp32"
    assert "cpu" in model.backend
    assert model.weight_bytes_per_token > 0
    assert "7.0" in repr(model)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.info.n_layer = 3  # type: ignore[misc]
    assert {field.name for field in dataclasses.fields(wkv.ModelInfo)} == {
        "version", "n_layer", "n_embd", "n_head", "head_size", "n_vocab", "dim_ffn", "n_params",
        "context_limit",
    }  # fmt: skip


def test_inspect_agrees_with_load(golden: Path) -> None:
    for folder in ("v4", "v5_2", "v6", "v7"):
        path = golden / folder / "model.safetensors"
        assert wkv.inspect(path) == wkv.Model.load(path, device="cpu").info


def test_constructors_are_closed() -> None:
    with pytest.raises(TypeError, match="load"):
        wkv.Model()
    with pytest.raises(TypeError, match="new_state"):
        wkv.State()


def test_the_suffix_may_be_left_out(golden: Path, model: wkv.Model) -> None:
    other = wkv.Model.load(str(golden / "v7" / "model"), device="cpu", dtype="fp32")
    np.testing.assert_allclose(last(other, IDS), last(model, IDS), atol=1e-5)


def test_shapes(model: wkv.Model) -> None:
    V = model.info.n_vocab
    state = model.new_state()
    logits = model.forward(IDS, state)
    assert logits.shape == (V,)
    assert logits.dtype == np.float32
    assert logits.flags.c_contiguous
    assert logits.flags.writeable
    assert logits.flags.owndata or logits.base is not None
    assert state.position == len(IDS)
    assert model.forward(IDS, state, logits="all").shape == (len(IDS), V)
    assert model.forward(IDS, state, logits="none").shape == (0,)
    assert model.forward(IDS, state, "all").shape == (len(IDS), V)
    assert state.position == 4 * len(IDS)


def test_all_is_token_by_token(model: wkv.Model) -> None:
    together = model.forward(IDS, model.new_state(), logits="all")
    state = model.new_state()
    single = np.stack([model.forward([token], state) for token in IDS])
    np.testing.assert_allclose(together, single, rtol=1e-5, atol=1e-5)


def test_batch_equals_alone(model: wkv.Model) -> None:
    lists = [[1, 2], [5], [7, 8, 9, 10]]
    states = [model.new_state() for _ in lists]
    batched = model.forward_batch(lists, states)
    assert batched.shape == (3, model.info.n_vocab)
    for ids, row, state in zip(lists, batched, states, strict=True):
        np.testing.assert_allclose(row, last(model, ids), rtol=1e-5, atol=1e-5)
        assert state.position == len(ids)
    rows = model.forward_batch(lists, states, logits="all")
    assert [r.shape for r in rows] == [(len(ids), model.info.n_vocab) for ids in lists]
    assert model.forward_batch(lists, states, logits="none").shape == (0, model.info.n_vocab)


@pytest.mark.parametrize(
    "ids",
    [
        tuple(IDS),
        range(1, 6),
        np.array(IDS),
        np.array(IDS, dtype=np.int32),
        np.array(IDS, dtype=np.uint16),
        np.array(IDS, dtype=np.uint8),
        np.array(IDS, dtype=np.uint64),
        np.array([9, *IDS, 9])[1:-1],
        np.array([IDS, IDS]).T[:, 0],
        np.array(IDS, dtype=">i4"),
        array.array("i", IDS),
        memoryview(array.array("q", IDS)),
        [np.int64(i) for i in IDS],
        (i for i in IDS),
    ],
    ids=lambda ids: type(ids).__name__,
)
def test_kinds_of_ids(model: wkv.Model, ids: object) -> None:
    want = list(range(1, 6)) if isinstance(ids, range) else IDS
    np.testing.assert_array_equal(last(model, ids), last(model, want))


def test_torch_ids_and_logits(model: wkv.Model) -> None:
    torch = pytest.importorskip("torch")
    want = last(model, IDS)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
        np.testing.assert_array_equal(last(model, torch.tensor(IDS, dtype=dtype)), want)
    np.testing.assert_array_equal(last(model, list(torch.tensor(IDS))), want)
    logits = last(model, IDS)
    tensor = torch.from_numpy(logits)
    assert tensor.data_ptr() == logits.ctypes.data  # no copy
    states = [model.new_state(), model.new_state()]
    rows = model.forward_batch([torch.tensor(IDS), torch.tensor([1])], states)
    np.testing.assert_allclose(rows[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        ([], ValueError, "no tokens"),
        (np.array([], dtype=np.int64), ValueError, "no tokens"),
        ([1, 10**6], ValueError, "1000000"),
        ([-1], ValueError, "-1"),
        ([2**40], ValueError, "outside"),
        ([2**80], ValueError, "32 bits"),
        (np.array([2**63], dtype=np.uint64), ValueError, "outside"),
        ([1.0], TypeError, "float"),
        (np.array([1.0]), TypeError, "float64"),
        (["a"], TypeError, "str"),
        ("text", TypeError, "tokenizer"),
        (b"text", TypeError, "tokenizer"),
        (5, TypeError, r"\[id\]"),
        (None, TypeError, "NoneType"),
        (np.array([[1]]), ValueError, "dimensions"),
    ],
)
def test_bad_ids(model: wkv.Model, ids: object, error: type[Exception], words: str) -> None:
    state = model.new_state()
    model.forward([1], state)
    before = state.to_bytes()
    with pytest.raises(error, match=words):
        model.forward(ids, state)  # type: ignore[arg-type]
    assert state.to_bytes() == before


def test_a_failing_iterator_keeps_its_exception(model: wkv.Model) -> None:
    def ids():  # type: ignore[no-untyped-def]
        yield 1
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        model.forward(ids(), model.new_state())


def test_bad_arguments(model: wkv.Model) -> None:
    state = model.new_state()
    with pytest.raises(ValueError, match="'last', 'all' or 'none'"):
        model.forward([1], state, logits="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 lists of tokens, but 1 states"):
        model.forward_batch([[1], [2]], [state])
    with pytest.raises(ValueError, match="use"):
        model.forward_batch([[1], [2]], [state, state])
    with pytest.raises(ValueError, match="threads"):
        wkv.Model.synthetic("v7:1x64:64", threads=0)
    with pytest.raises(TypeError, match="progress"):
        model.forward([1], state, progress=3)  # type: ignore[arg-type]
    assert state.position == 0


def test_a_state_of_another_model(model: wkv.Model, v4: wkv.Model) -> None:
    with pytest.raises(ValueError, match="another model"):
        model.forward([1], v4.new_state())


def test_vectors(model: wkv.Model) -> None:
    C = model.info.n_embd
    rng = np.random.default_rng(1)
    x = rng.normal(size=(5, C)).astype(np.float32)
    state = model.new_state()
    logits = model.forward_vectors(x, state)
    assert logits.shape == (model.info.n_vocab,)
    assert state.position == 5
    one_by_one = model.new_state()
    rows = [model.forward_vectors(row[None], one_by_one) for row in x]
    np.testing.assert_allclose(rows[-1], logits, rtol=1e-5, atol=1e-5)
    assert not np.allclose(model.forward_vectors(x, model.new_state(), ln0=False), logits)
    with pytest.raises(ValueError, match=rf"\[T, {C}\]"):
        model.forward_vectors(x[:, :-1], state)
    with pytest.raises(ValueError, match="record"):
        model.forward_vectors(x, model.new_state(record=True))


def test_vectors_equal_ids(golden: Path, model: wkv.Model) -> None:
    from wkv import _core

    table = _core.Checkpoint.open(golden / "v7" / "model.safetensors").get("emb.weight")
    by_vectors = model.forward_vectors(table[IDS], model.new_state(), logits="all")
    by_ids = model.forward(IDS, model.new_state(), logits="all")
    np.testing.assert_allclose(by_vectors, by_ids, rtol=1e-5, atol=1e-5)


def test_hidden(golden: Path, model: wkv.Model) -> None:
    from wkv import _core

    L, C = model.info.n_layer, model.info.n_embd
    lists = [[1, 2, 3], [4]]
    states = [model.new_state(), model.new_state()]
    h = model.hidden(lists, states, layers=[-1, 0], rows="all")
    assert h.shape == (2, 4, C)
    assert [state.position for state in states] == [3, 1]
    # What the output layer gets, times its matrix, is the logits.
    head = _core.Checkpoint.open(golden / "v7" / "model.safetensors").get("head.weight")
    np.testing.assert_allclose(h[0, 2] @ head.T, last(model, [1, 2, 3]), rtol=1e-4, atol=1e-4)
    states = [model.new_state(), model.new_state()]
    np.testing.assert_allclose(model.hidden(lists, states)[0, 1], h[0, 3], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=str(L)):
        model.hidden(lists, states, layers=[L + 1])


def test_matmul_precision(golden: Path) -> None:
    """A permission that every CPU understands; the state of a prompt still fits one by one."""
    path = golden / "v7" / "model.safetensors"
    ids = [i % 50 for i in range(40)]
    plain = wkv.Model.load(path, device="cpu", dtype="int8")
    want = plain.forward(ids, plain.new_state())
    for precision in get_args(MatmulPrecision):
        model = wkv.Model.load(path, device="cpu", dtype="int8", matmul_precision=precision)
        got = model.forward(ids, model.new_state())
        assert np.abs(got - want).max() < (0.6 if precision == "w8a8" else 0.1)
    with pytest.raises(ValueError, match="'half'; use one of auto, exact, fast, w8a8"):
        wkv.Model.load(path, matmul_precision="half")  # type: ignore[arg-type]


def test_threads_do_not_change_a_bit(golden: Path) -> None:
    ids = list(range(1, 60))
    one, two = (
        wkv.Model.load(golden / "v6" / "model.safetensors", device="cpu", threads=n) for n in (1, 2)
    )
    np.testing.assert_array_equal(
        one.forward(ids, one.new_state(), logits="all"),
        two.forward(ids, two.new_state(), logits="all"),
    )


def test_overhead_of_a_call() -> None:
    """Python's part of a decode call: two functions of its own and one of the core."""
    tiny = wkv.Model.synthetic("v4:1x32:32", device="cpu", threads=1, dtype="fp32")
    state = tiny.new_state()
    tiny.forward([1], state)
    calls = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            calls.append(argument or frame.f_code.co_name)

    sys.setprofile(note)
    try:
        tiny.forward([1], state)
    finally:
        sys.setprofile(None)
    assert calls[:2] == ["forward", "_check_state"]
    builtin = [call.__name__ for call in calls[2:]]
    assert [name for name in builtin if name != "isinstance"] == ["forward", "setprofile"]


@pytest.mark.parametrize("version", ["v4", "v5", "v6", "v7"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8", "mm8", "int4"])
def test_units_that_are_zero_may_be_skipped(version: str, dtype: str) -> None:
    """The same logits, whether rows of ffn.value are left unread or not."""
    ids = [5, 1, 4, 1, 5, 9, 2, 6]
    rows = []
    for skip in (False, True):
        model = wkv.Model.synthetic(f"{version}:2x64:100@0.2", dtype=dtype, skip_zeros=skip)
        state = model.new_state()
        logits = [model.forward(ids[:3], state), *(model.forward([i], state) for i in ids[3:])]
        batch = [state.copy() for _ in range(3)]
        logits.extend(model.forward_batch([[1], [2], [3]], batch))
        rows.append(np.stack(logits))
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-5 * np.abs(rows[0]).max())
