"""The recurrences of v4 to v7 against numpy float64, on every device and ISA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ops.harness import F32, Target, assert_close, f64, split_rows, targets
from reference import ops as oracle

RAGGED = [[1], [3], [63], [65], [2, 1, 65, 1]]
HEADS = [(1, 1), (2, 8), (3, 24), (1, 63), (12, 64), (2, 65), (2, 128)]
EPS = 64e-5

pytestmark = pytest.mark.parametrize("target", targets(), ids=str)


def sigmoid(x: F32) -> F32:
    return (1 / (1 + np.exp(-x))).astype(np.float32)


class Case:
    """Random inputs of one ragged call; `args` in the order of the op."""

    def __init__(self, seed: int, rows: list[int], heads: int, n: int) -> None:
        self.rng = np.random.default_rng([seed, heads, n, *rows])
        self.rows, self.heads, self.n = rows, heads, n
        self.C, self.T, self.B = heads * n, sum(rows), len(rows)

    def rowwise(self, scale: float = 1.0) -> F32:
        return (scale * self.rng.standard_normal((self.T, self.C))).astype(np.float32)

    def vector(self, scale: float = 1.0) -> F32:
        return (scale * self.rng.standard_normal(self.C)).astype(np.float32)

    def matrix_state(self) -> F32:
        return self.rng.standard_normal((self.B, self.C * self.n)).astype(np.float32)

    def parts(self, *tensors: F32 | None) -> list[list[Any]]:
        """Per sequence, the rows of each tensor in float64."""
        columns = [
            [None] * self.B if t is None else split_rows(np.asarray(t, np.float64), self.rows)
            for t in tensors
        ]
        return [list(c) for c in zip(*columns, strict=True)]


def check(result: tuple[F32, F32], expected: list[tuple[Any, Any]], tolerance: float) -> None:
    """Relative to the largest value, or to the inputs (of size 1) where the terms cancel."""
    y, state = result
    pairs = [(y, np.concatenate([e for e, _ in expected]))]
    pairs += [(got, want.reshape(-1)) for got, (_, want) in zip(state, expected, strict=True)]
    for got, want in pairs:
        assert_close(got, want, tolerance, scale=max(1.0, np.abs(want).max()))


def wkv4_case(rows: list[int], C: int, k_scale: float = 3.0) -> tuple[Case, list[F32], F32]:
    case = Case(4, rows, 1, C)
    r, k, v = case.rowwise(), case.rowwise(k_scale), case.rowwise()
    decay, bonus = -np.exp(case.vector()), case.vector()
    state = np.zeros((case.B, 3, C), np.float32)
    state[:, 2] = -1e30
    return case, [r, k, v, decay, bonus], state


def wkv4_expected(case: Case, args: list[F32], state: F32) -> list[tuple[Any, Any]]:
    r, k, v, decay, bonus = args
    return [
        oracle.wkv4(*part, *f64(decay, bonus, s))
        for part, s in zip(case.parts(r, k, v), state, strict=True)
    ]


@pytest.mark.parametrize("C", [1, 8, 100, 768])
@pytest.mark.parametrize("rows", RAGGED, ids=str)
def test_wkv4(target: Target, rows: list[int], C: int) -> None:
    case, args, state = wkv4_case(rows, C)
    result = target.open(padding=1).wkv4(*args, state.reshape(case.B, -1), rows)
    check(result, wkv4_expected(case, args, state), 2e-6)


def test_wkv4_continues_from_its_state(target: Target) -> None:
    case, args, state = wkv4_case([20], 40)
    device = target.open()
    flat = state.reshape(1, -1)
    first, middle = device.wkv4(*[a[:13] for a in args[:3]], *args[3:], flat)
    second, end = device.wkv4(*[a[13:] for a in args[:3]], *args[3:], middle)
    check((np.concatenate([first, second]), end), wkv4_expected(case, args, state), 2e-6)


@pytest.mark.parametrize("k_scale", [1e-30, 50.0, 1e4, 1e8])
def test_wkv4_is_stable_for_large_keys(target: Target, k_scale: float) -> None:
    """exp(k) alone would overflow from 89 on. Eighths, so that u + k and pp + w are exact."""
    case, args, state = wkv4_case([65], 33, k_scale)
    for i in (1, 3, 4):
        args[i] = np.round(args[i] * 8) / np.float32(8)
    y, new = target.open().wkv4(*args, state.reshape(1, -1))
    [(expected, expected_state)] = wkv4_expected(case, args, state)
    assert_close(y, expected, 2e-6)
    assert_close(new[0, 66:], expected_state[2], 1e-6)


def test_wkv4_start_value_of_pp_does_not_matter(target: Target) -> None:
    _, args, state = wkv4_case([9], 16)
    device = target.open()
    ys = []
    for pp in (-1e30, -1e38, -np.float32(3.4e38)):
        state[:, 2] = pp
        ys.append(device.wkv4(*args, state.reshape(1, -1))[0])
    np.testing.assert_array_equal(ys[0], ys[1])
    np.testing.assert_array_equal(ys[0], ys[2])


def wkv6_expected(
    case: Case,
    args: list[F32],
    state: F32,
    norm: tuple[F32, F32] | None = None,
    gate: F32 | None = None,
) -> list[tuple[Any, Any]]:
    r, k, v, decay, bonus = args
    per_token = decay if decay.ndim == 2 else np.broadcast_to(decay, r.shape)
    expected = []
    for (r_, k_, v_, w_, g_), s in zip(case.parts(r, k, v, per_token, gate), state, strict=True):
        s64 = f64(s)[0].reshape(case.heads, case.n, case.n)
        y, new = oracle.wkv6(r_, k_, v_, w_, *f64(bonus), case.heads, s64)
        if norm is not None:
            y = oracle.group_norm(y, *f64(*norm), case.heads, EPS)
        expected.append((y if gate is None else y * g_, new))
    return expected


def wkv6_case(rows: list[int], heads: int, n: int, constant: bool) -> tuple[Case, list[F32], F32]:
    case = Case(6, rows, heads, n)
    decay = np.exp(-np.exp(case.vector() if constant else case.rowwise()))
    args = [case.rowwise(), case.rowwise(), case.rowwise(), decay, case.vector()]
    return case, args, case.matrix_state()


@pytest.mark.parametrize("constant", [False, True], ids=["v6", "v5"])
@pytest.mark.parametrize(("heads", "n"), HEADS)
@pytest.mark.parametrize("rows", RAGGED, ids=str)
def test_wkv6(target: Target, rows: list[int], heads: int, n: int, constant: bool) -> None:
    case, args, state = wkv6_case(rows, heads, n, constant)
    result = target.open(padding=1).wkv6(*args, heads, state, rows)
    check(result, wkv6_expected(case, args, state), 2e-6)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("heads", "n"), [(2, 8), (3, 24), (12, 64), (2, 65)])
def test_wkv6_with_norm_and_gate(target: Target, heads: int, n: int, gated: bool) -> None:
    case, args, state = wkv6_case([2, 1, 65], heads, n, False)
    norm, gate = (case.vector(), case.vector()), case.rowwise() if gated else None
    result = target.open(padding=1).wkv6(
        *args, heads, state, case.rows, weight=norm[0], bias=norm[1], eps=EPS, gate=gate
    )
    check(result, wkv6_expected(case, args, state, norm, gate), 1e-5)


def test_wkv6_decay_of_zero_and_one(target: Target) -> None:
    case, args, state = wkv6_case([65], 2, 64, True)
    args[3] = np.repeat([0.0, 1.0], 64).astype(np.float32)
    result = target.open().wkv6(*args, 2, state)
    check(result, wkv6_expected(case, args, state), 2e-6)


def wkv7_case(rows: list[int], heads: int, n: int) -> tuple[Case, list[F32], F32]:
    case = Case(7, rows, heads, n)
    w = np.exp(-np.exp(-0.5) * sigmoid(case.rowwise())).astype(np.float32)
    args = [case.rowwise(), w, case.rowwise(), case.rowwise(), sigmoid(case.rowwise())]
    args += [case.vector(), case.vector(), case.vector()]
    return case, args, case.matrix_state()


def wkv7_expected(
    case: Case,
    args: list[F32],
    state: F32,
    *,
    mix: tuple[F32, F32] | None = None,
    norm: tuple[F32, F32] | None = None,
    gate: F32 | None = None,
) -> list[tuple[Any, Any]]:
    rowwise, vectors = args[:5], f64(*args[5:])
    first, second = mix if mix is not None else (None, None)
    affine = None if norm is None else (*f64(*norm), EPS)
    expected = []
    for (*part, vf, vm, g), s in zip(case.parts(*rowwise, first, second, gate), state, strict=True):
        s64 = f64(s)[0].reshape(case.heads, case.n, case.n)
        expected.append(
            oracle.wkv7(*part, *vectors, case.heads, s64, v_first=vf, v_mix=vm, norm=affine, gate=g)
        )
    return expected


@pytest.mark.parametrize(("heads", "n"), HEADS)
@pytest.mark.parametrize("rows", RAGGED, ids=str)
def test_wkv7(target: Target, rows: list[int], heads: int, n: int) -> None:
    case, args, state = wkv7_case(rows, heads, n)
    result = target.open(padding=1).wkv7(*args, heads, state, rows)
    check(result, wkv7_expected(case, args, state), 5e-6)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("heads", "n"), [(2, 8), (3, 24), (12, 64), (2, 65), (1, 128)])
@pytest.mark.parametrize("rows", [[1], [2, 1, 65]], ids=str)
def test_wkv7_with_everything(
    target: Target, rows: list[int], heads: int, n: int, mixed: bool
) -> None:
    case, args, state = wkv7_case(rows, heads, n)
    mix = (case.rowwise(), sigmoid(case.rowwise())) if mixed else None
    norm, gate = (case.vector(), case.vector()), case.rowwise()
    first, second = mix if mix is not None else (None, None)
    result = target.open(padding=1).wkv7(
        *args, heads, state, rows, first, second, norm[0], norm[1], EPS, gate
    )
    check(result, wkv7_expected(case, args, state, mix=mix, norm=norm, gate=gate), 1e-5)


@pytest.mark.parametrize("k", [0.0, 1e-25, 1e-9, 1e8])
def test_wkv7_removal_key_of_any_length(target: Target, k: float) -> None:
    """A zero key has no direction: its removal key is zero, not NaN."""
    case, args, state = wkv7_case([7], 2, 64)
    args[2] = (args[2] * k).astype(np.float32)
    result = target.open().wkv7(*args, 2, state)
    check(result, wkv7_expected(case, args, state), 5e-6)


@pytest.mark.parametrize("op", ["wkv4", "wkv6", "wkv7"])
def test_row_by_row_equals_all_rows(target: Target, op: str) -> None:
    T, heads, n = 33, 2, 64
    if op == "wkv4":
        case, args, state = wkv4_case([T], heads * n)
        tail: list[Any] = []
        state = state.reshape(1, -1)
        rowwise = 3
    else:
        make = wkv7_case if op == "wkv7" else lambda *a: wkv6_case(*a, False)
        case, args, state = make([T], heads, n)
        tail, rowwise = [heads], 5 if op == "wkv7" else 4
    run = getattr(target.open(), op)
    whole, end = run(*args, *tail, state)
    steps = []
    for t in range(case.T):
        row = [a[t : t + 1] for a in args[:rowwise]]
        y, state = run(*row, *args[rowwise:], *tail, state)
        steps.append(y)
    assert_close(np.concatenate(steps), whole, 1e-6)
    assert_close(state, end, 1e-6)
