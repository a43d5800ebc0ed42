"""Random checkpoints of every version against float64, and every way to feed the same tokens."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import reference
import wkv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import Array
from reference.files import round_to, write_safetensors
from reference.random_weights import Spec, random_weights

from models.specs import SPECS

weights_of = cache(random_weights)
# One spec per version, for the tests that are about feeding, not about mathematics.
ONE_EACH = list({spec.version: spec for spec in SPECS}.values())


class FileOf(Protocol):
    def __call__(self, spec: Spec, dtype: str = "fp32") -> Path: ...


@pytest.fixture(scope="session")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> FileOf:
    folder = tmp_path_factory.mktemp("checkpoints")

    @cache
    def write(spec: Spec, dtype: str = "fp32") -> Path:
        name = f"{SPECS.index(spec)}-{dtype}.safetensors"
        note = {"rwkv.version": spec.version}  # tells 6.0c, whose names and shapes are 6.0b's
        return write_safetensors(folder / name, weights_of(spec), dtype, note)

    return write


def tokens_of(spec: Spec, n: int) -> list[int]:
    """At most n random tokens: no more than the model's context."""
    if spec.bounded:
        n = min(n, spec.ctx_len)
    ids: list[int] = np.random.default_rng(n).integers(0, spec.n_vocab, n).tolist()
    return ids


def truth_of(spec: Spec, weights: reference.Weights | None = None) -> reference.Reference:
    return reference.load(weights_of(spec) if weights is None else weights, variant=spec.version)


def relative(got: Array, want: Array) -> float:
    return float(np.abs(got - want).max() / max(1.0, float(np.abs(want).max())))


def parts(state: wkv.State) -> dict[str, Array]:
    names = list(state.keys())
    return {name: np.asarray(state[name]) for name in names}


def check_parts(got: wkv.State, want: dict[str, Array], tolerance: float) -> None:
    assert list(got.keys()) == list(want)
    for name, part in want.items():
        assert got[name].shape == part.shape, name
        assert relative(np.asarray(got[name]), part) <= tolerance, name


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_fp32(spec: Spec, file_of: FileOf, isa: str) -> None:
    model = wkv.Model.load(file_of(spec), device="cpu", dtype="fp32", threads=2)
    assert model.info.version == spec.version
    truth = truth_of(spec)
    assert (model.info.n_head, model.info.head_size) == (truth.sizes.n_head, truth.sizes.head_size)
    tokens = tokens_of(spec, 21)
    want, want_state = truth.forward(tokens)
    state = model.new_state()
    assert relative(model.forward(tokens, state, logits="all"), want) <= 2e-5
    check_parts(state, want_state, 2e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_half(spec: Spec, dtype: str, file_of: FileOf, isa: str) -> None:
    """A half-precision file as it is stored: float64 with the same rounded weights is the truth."""
    model = wkv.Model.load(file_of(spec, dtype), device="cpu", threads=2)
    assert model.dtype == dtype
    truth = truth_of(spec, {name: round_to(a, dtype) for name, a in weights_of(spec).items()})
    tokens = tokens_of(spec, 9)
    want, _ = truth.forward(tokens)
    assert relative(model.forward(tokens, model.new_state(), logits="all"), want) <= 2e-5


@pytest.mark.parametrize("spec", ONE_EACH, ids=str)
def test_prefill_equals_one_by_one(spec: Spec, file_of: FileOf, isa: str) -> None:
    """600 tokens: more than the rows of one step, so that steps chain through the state."""
    model = wkv.Model.load(file_of(spec), device="cpu", dtype="fp32")
    tokens = tokens_of(spec, 600)
    whole = model.new_state()
    prefill = model.forward(tokens, whole, logits="all")
    single = model.new_state()
    rows = np.stack([model.forward([token], single) for token in tokens])
    assert relative(prefill, rows) <= 1e-5
    check_parts(whole, parts(single), 1e-5)
    assert whole.position == single.position == len(tokens)


@pytest.mark.parametrize("spec", ONE_EACH, ids=str)
def test_last_and_none(spec: Spec, file_of: FileOf) -> None:
    model = wkv.Model.load(file_of(spec), device="cpu", dtype="fp32")
    tokens = tokens_of(spec, 300)
    every, last, none = (model.new_state() for _ in range(3))
    rows = model.forward(tokens, every, logits="all")
    assert relative(model.forward(tokens, last), rows[-1]) <= 1e-5
    assert model.forward(tokens, none, logits="none").size == 0
    check_parts(none, parts(every), 1e-5)


def cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    pieces, begin = [], 0
    while begin < len(ids):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(ids[begin : begin + size])
        begin += size
    return pieces


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 17), min_size=1, max_size=4),
)
@pytest.mark.parametrize("spec", ONE_EACH, ids=str)
def test_ragged_equals_alone(
    spec: Spec, file_of: FileOf, lengths: list[int], sizes: list[int]
) -> None:
    """Streams of unequal length, cut anywhere and mixed in calls, equal the same streams alone."""
    model = _model(file_of(spec))
    streams = [tokens_of(spec, n) for n in lengths]
    alone = [model.new_state() for _ in streams]
    want = [model.forward(ids, s, logits="all") for ids, s in zip(streams, alone, strict=True)]
    mixed = [model.new_state() for _ in streams]
    pieces = [cut(ids, sizes[i % len(sizes) :] + sizes) for i, ids in enumerate(streams)]
    got: list[list[Array]] = [[] for _ in streams]
    for call in range(max(len(p) for p in pieces)):
        live = [i for i, p in enumerate(pieces) if call < len(p)]
        rows = model.forward_batch(
            [pieces[i][call] for i in live], [mixed[i] for i in live], logits="all"
        )
        for i, logits in zip(live, rows, strict=True):
            got[i].append(logits.copy())
    for i in range(len(streams)):
        assert relative(np.concatenate(got[i]), want[i]) <= 1e-5
        check_parts(mixed[i], parts(alone[i]), 1e-5)


@cache
def _model(path: Path) -> wkv.Model:
    return wkv.Model.load(path, device="cpu", dtype="fp32", threads=2)


@pytest.mark.parametrize("spec", ONE_EACH, ids=str)
def test_threads_change_no_bit(spec: Spec, file_of: FileOf, isa: str) -> None:
    tokens = tokens_of(spec, 70)
    results = []
    for threads in (1, 2, 3, 7):
        model = wkv.Model.load(file_of(spec), device="cpu", threads=threads)
        state, other = model.new_state(), model.new_state()
        rows = model.forward(tokens, state, logits="all")
        pair = model.forward_batch([tokens[:1], tokens[:5]], [other, model.new_state()])
        results.append((rows, pair, state.to_bytes()))
    for rows, pair, blob in results[1:]:
        assert np.array_equal(rows, results[0][0])
        assert np.array_equal(pair, results[0][1])
        assert blob == results[0][2]


@pytest.mark.parametrize("spec", ONE_EACH, ids=str)
def test_state_is_a_value(spec: Spec, file_of: FileOf, tmp_path: Path) -> None:
    model = _model(file_of(spec))
    tokens = tokens_of(spec, 30)
    first, rest = tokens[:20], tokens[20:]
    state = model.new_state()
    model.forward(first, state)
    before = parts(state)
    blob = state.to_bytes()
    branch = state.copy()
    state.save(tmp_path / "state.wkv")
    want = model.forward(rest, state, logits="all")

    check_parts(branch, before, 0.0)  # advancing one leaves the other alone
    by_parts = model.new_state()
    for name, part in before.items():
        by_parts[name] = part
    restored = [branch, model.state_from_bytes(blob), model.load_state(tmp_path / "state.wkv")]
    if not spec.bounded:  # a bounded history also needs the position, which is no part
        restored.append(by_parts)
    for other in restored:
        assert np.array_equal(model.forward(rest, other, logits="all"), want)
        check_parts(other, parts(state), 0.0)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.time_state], ids=str)
def test_time_state_starts_every_stream(spec: Spec, file_of: FileOf) -> None:
    model = _model(file_of(spec))
    check_parts(model.new_state(), truth_of(spec).new_state(), 1e-7)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.bounded], ids=str)
def test_context_ends_and_nothing_is_lost(spec: Spec, file_of: FileOf) -> None:
    model = _model(file_of(spec))
    assert model.info.context_limit == spec.ctx_len
    tokens = tokens_of(spec, spec.ctx_len)
    state = model.new_state()
    model.forward(tokens[:-3], state)
    before = state.to_bytes()
    with pytest.raises(wkv.ContextLengthError, match=str(spec.ctx_len)):
        model.forward(tokens[:4], state)
    assert state.to_bytes() == before
    want, _ = truth_of(spec).forward(tokens)
    assert relative(model.forward(tokens[-3:], state, logits="all"), want[-3:]) <= 2e-5
    with pytest.raises(wkv.ContextLengthError):
        model.forward([0], state)
    assert state.position == spec.ctx_len
