"""The ops of v1 to v3 and of the research variants against numpy float64, on every ISA."""

from __future__ import annotations

import numpy as np
import pytest
from ops.harness import F32, F64, Target, assert_close, cpu_targets, f64, split_rows
from reference import history as oracle

pytestmark = pytest.mark.parametrize("target", cpu_targets(), ids=str)

CTX = 40
# Rows of each sequence and the tokens that it has read before.
RAGGED = [([1], [0]), ([1], [39]), ([17], [0]), ([3, 1, 20, 1], [0, 13, 20, 39])]


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> F32:
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def parts(rows: list[int], *tensors: F32) -> list[list[F64]]:
    """Per sequence, its rows of each tensor in float64."""
    columns = [split_rows(t, rows) for t in f64(*tensors)]
    return [list(c) for c in zip(*columns, strict=True)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("rows", "positions"), RAGGED)
@pytest.mark.parametrize(("heads", "n"), [(1, 1), (3, 5), (2, 16), (4, 67)])
def test_wkv1(
    target: Target, heads: int, n: int, rows: list[int], positions: list[int], threads: int
) -> None:
    rng = np.random.default_rng([heads, n, *rows])
    C, T, B = heads * n, sum(rows), len(rows)
    r, v = normal(rng, T, C), normal(rng, T, C)
    k = normal(rng, T, C, scale=3.0)
    k[0, 0], k[-1, -1] = 300.0, -300.0  # beyond both clamps
    w, alpha, beta = (rng.uniform(0.1, 1, (heads, CTX)).astype(np.float32) for _ in range(3))
    states = np.zeros((B, C + CTX * C), np.float32)
    states[:, :C] = rng.uniform(0.5, 2, (B, C))
    for b, at in enumerate(positions):
        states[b, C : C + at * C] = rng.standard_normal(at * C)
    y, new = target.open(threads=threads, padding=1).wkv1(
        r, k, v, w, alpha, beta, heads, states, rows, positions
    )
    want = []
    for b, part in enumerate(parts(rows, r, k, v)):
        state = states[b].astype(np.float64)
        out, sum_k, history = oracle.wkv1(
            *part, *f64(w, alpha, beta), state[:C], state[C:].reshape(CTX, C), positions[b]
        )
        want.append(out)
        assert_close(new[b, :C], sum_k, 1e-6, scale=sum_k)
        assert_close(new[b, C:], history.reshape(-1), 1e-6, scale=1 + np.abs(history.reshape(-1)))
    expected = np.concatenate(want)
    assert_close(y, expected, 3e-6, scale=np.maximum(1, np.abs(expected).max(0)))


@pytest.mark.parametrize("eps", [1e-16, 1e-8])
@pytest.mark.parametrize("rows", [[1], [65], [2, 1, 30, 1]], ids=str)
@pytest.mark.parametrize("C", [1, 8, 100, 768])
def test_wkv2(target: Target, C: int, rows: list[int], eps: float) -> None:
    rng = np.random.default_rng([C, *rows])
    T, B = sum(rows), len(rows)
    r, v = normal(rng, T, C), normal(rng, T, C)
    k = np.round(normal(rng, T, C, scale=4.0) * 8) / np.float32(8)  # so that exp(k) is comparable
    k[0, 0] = 300.0
    decay = rng.uniform(0.1, 1, C).astype(np.float32)
    bonus = rng.uniform(0.1, 5, C).astype(np.float32)
    state = rng.uniform(0.5, 2, (B, 2 * C)).astype(np.float32)
    y, new = target.open(threads=2, padding=1).wkv2(r, k, v, decay, bonus, eps, state, rows)
    state64, (decay64, bonus64) = state.reshape(B, 2, C).astype(np.float64), f64(decay, bonus)
    outs = []
    for b, (r_b, k_b, v_b) in enumerate(parts(rows, r, k, v)):
        out, end = oracle.wkv2(r_b, k_b, v_b, decay64, bonus64, eps, state64[b])
        # aa is a sum of terms of both signs: its error goes with their magnitudes.
        _, terms = oracle.wkv2(r_b, k_b, np.abs(v_b), decay64, bonus64, eps, state64[b])
        outs.append(out)
        assert_close(new[b], end.reshape(-1), 3e-6, scale=terms.reshape(-1))
    assert_close(y, np.concatenate(outs), 3e-6)


def test_wkv2_with_nothing_to_weigh(target: Target) -> None:
    """All keys underflow: eps keeps the first token finite."""
    tiny = np.full((1, 9), -200, np.float32)
    one = np.ones((1, 9), np.float32)
    y, _ = target.open().wkv2(one, tiny, one, one[0], one[0], 1e-8, np.zeros((1, 18)), [1])
    assert np.all(y == 0)


@pytest.mark.parametrize("wanted", [[], [0, 4, 9], list(range(10))], ids=len)
def test_by_position(target: Target, wanted: list[int]) -> None:
    rows, positions = [3, 1, 6], [0, 12, 30]
    place = np.concatenate([p + np.arange(n) for n, p in zip(rows, positions, strict=True)])
    values = normal(np.random.default_rng(1), CTX)
    device = target.open()
    y = device.by_position(np.zeros((10, 7)), values, rows, positions, wanted)
    np.testing.assert_array_equal(y, np.repeat(values[place][:, None], 7, 1))
    if 0 < len(wanted) < 10:
        y = device.by_position(np.zeros((3, 7)), values, rows, positions, wanted)
        np.testing.assert_array_equal(y, np.repeat(values[place[wanted]][:, None], 7, 1))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize(("rows", "positions"), RAGGED)
@pytest.mark.parametrize("D", [1, 12, 256])
def test_copy_logits(
    target: Target, D: int, rows: list[int], positions: list[int], last_only: bool, threads: int
) -> None:
    rng = np.random.default_rng([D, *rows])
    V, T, B = 23, sum(rows), len(rows)
    ends = np.cumsum(rows)
    wanted = [int(e) - 1 for e in ends] if last_only else list(range(T))
    q, k, logits = normal(rng, T, D), normal(rng, T, D), normal(rng, T, V)
    tokens = rng.integers(0, V, T)
    states = np.zeros((B, CTX * D + CTX), np.float32)
    for b, at in enumerate(positions):
        states[b, : at * D] = rng.standard_normal(at * D)
        states[b, CTX * D : CTX * D + at] = rng.integers(0, V, at)
    y, new = target.open(threads=threads, padding=1).copy_logits(
        logits[wanted], q[wanted], k, tokens.tolist(), 1 / D, states, rows, positions, wanted
    )
    want = []
    for b, (q_b, k_b, t_b) in enumerate(parts(rows, q, k, tokens.astype(np.float32))):
        state = states[b].astype(np.float64)
        keys = oracle.remember(k_b, state[: CTX * D].reshape(CTX, D), positions[b])
        ids = oracle.remember(t_b, state[CTX * D :], positions[b])
        np.testing.assert_array_equal(new[b, CTX * D :], ids)
        np.testing.assert_array_equal(new[b, : CTX * D], keys.reshape(-1).astype(np.float32))
        for i in range(rows[b]):
            n = positions[b] + i + 1
            want.append(oracle.copied(q_b[i], keys[:n], ids[:n].astype(np.int64), V, 1 / D))
    assert_close(y, logits[wanted] + np.stack(want)[wanted], 1e-6, scale=10.0)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize(("rows", "positions"), RAGGED)
@pytest.mark.parametrize(("D", "E"), [(1, 1), (5, 7), (48, 48), (64, 100)])
def test_attention(
    target: Target,
    D: int,
    E: int,
    rows: list[int],
    positions: list[int],
    scale: float,
    threads: int,
) -> None:
    rng = np.random.default_rng([D, E, *rows])
    T, B = sum(rows), len(rows)
    q, k, v = normal(rng, T, D), normal(rng, T, D, scale=scale), normal(rng, T, E)
    if D != E:
        with pytest.raises(RuntimeError, match="attention"):
            target.open().attention(q, v, v, np.zeros((B, CTX * 2 * E)), rows, positions)
    states = np.zeros((B, CTX * (D + E)), np.float32)
    for b, at in enumerate(positions):
        states[b, : at * D] = scale * rng.standard_normal(at * D)
        states[b, CTX * D : CTX * D + at * E] = rng.standard_normal(at * E)
    y, new = target.open(threads=threads, padding=1).attention(q, k, v, states, rows, positions)
    want = []
    for b, (q_b, k_b, v_b) in enumerate(parts(rows, q, k, v)):
        state = states[b].astype(np.float64)
        keys = oracle.remember(k_b, state[: CTX * D].reshape(CTX, D), positions[b])
        values = oracle.remember(v_b, state[CTX * D :].reshape(CTX, E), positions[b])
        want.append(oracle.attention(q_b, keys, values, positions[b]))
        history = np.concatenate([keys.reshape(-1), values.reshape(-1)])
        np.testing.assert_array_equal(new[b], history.astype(np.float32))
    assert_close(y, np.concatenate(want), 1e-6 * max(1.0, scale * np.sqrt(D) / 4), scale=3.0)


@pytest.mark.parametrize("rows", [[1], [33], [4, 1, 9]], ids=str)
@pytest.mark.parametrize(("D", "C"), [(1, 1), (5, 39), (16, 64), (256, 200)])
def test_linear_attention(target: Target, D: int, C: int, rows: list[int]) -> None:
    rng = np.random.default_rng([D, C, *rows])
    T, B = sum(rows), len(rows)
    q, k, v = normal(rng, T, D), normal(rng, T, D), normal(rng, T, C)
    states = normal(rng, B, D * C)
    device = target.open(threads=3, padding=1)
    y, new = device.linear_attention(q, k, v, 0.25, states, rows)
    want = [
        oracle.linear_attention(*part, 0.25, states[b].reshape(D, C).astype(np.float64))
        for b, part in enumerate(parts(rows, q, k, v))
    ]
    assert_close(y, np.concatenate([out for out, _ in want]), 2e-6)
    for b, (_, end) in enumerate(want):
        assert_close(new[b], end.reshape(-1), 1e-6)


@pytest.mark.parametrize("T", [1, 9])
@pytest.mark.parametrize("R", [1, 7, 32])
def test_row_matvec(target: Target, R: int, T: int) -> None:
    rng = np.random.default_rng(R)
    x, m = normal(rng, T, R), normal(rng, T, R * R)
    y = target.open(padding=2).row_matvec(x, m)
    want = np.einsum("ti,tij->tj", *f64(x, m.reshape(T, R, R)))
    assert_close(y, want, 1e-6, scale=np.sqrt(R) * 4)
