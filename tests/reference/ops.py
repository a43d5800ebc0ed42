"""The ops of cpp/src/ops/ops.h in numpy float64: short, slow, written from the formulas.

Rows are the tokens of one sequence, ``[T, C]``. An op with a state takes the state and returns the
new one beside its result; nothing is changed in place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def sigmoid(x: F64) -> F64:
    """The logistic function, without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def activation(name: str, x: F64) -> F64:
    """``wkv::Act`` by its name."""
    match name:
        case "none":
            return x
        case "tanh":
            return np.tanh(x)
        case "sigmoid":
            return sigmoid(x)
        case "silu":
            return x * sigmoid(x)
        case "relu_squared":
            return np.maximum(x, 0) ** 2
        case "exp_neg_exp":
            return np.exp(-np.exp(x))
        case "decay7":
            return np.exp(-np.exp(-0.5) * sigmoid(x))
    raise ValueError(name)


def layer_norm(x: F64, weight: F64, bias: F64, eps: float) -> F64:
    """Over the last axis, biased variance."""
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * weight + bias


def group_norm(x: F64, weight: F64, bias: F64, heads: int, eps: float) -> F64:
    """Each of ``heads`` groups of the last axis by itself, then one affine map over all."""
    y = x.reshape(*x.shape[:-1], heads, -1)
    n = y.shape[-1]
    y = layer_norm(y, np.ones(n), np.zeros(n), eps).reshape(x.shape)
    return y * weight + bias


def shift_delta(x: F64, prev: F64) -> tuple[F64, F64]:
    """x_{t-1} - x_t with x_{-1} = prev ``[C]``; the new prev."""
    before = np.concatenate([prev[None], x[:-1]])
    return before - x, x[-1]


def lerp(x: F64, dx: F64, mu: F64) -> F64:
    """How much of the past."""
    return x + dx * mu


def wkv4(r: F64, k: F64, v: F64, decay: F64, bonus: F64, state: F64) -> tuple[F64, F64]:
    """The stable recurrence; state ``[3, C]`` is aa, bb, pp."""
    aa, bb, pp = state
    y = np.empty_like(r)
    for t in range(len(r)):
        q = np.maximum(pp, bonus + k[t])
        old, now = np.exp(pp - q), np.exp(bonus + k[t] - q)
        y[t] = r[t] * (old * aa + now * v[t]) / (old * bb + now)
        q = np.maximum(pp + decay, k[t])
        old, now = np.exp(pp + decay - q), np.exp(k[t] - q)
        aa, bb, pp = old * aa + now * v[t], old * bb + now, q
    return y, np.stack([aa, bb, pp])


def split(x: F64, heads: int) -> F64:
    """``[T, C]`` or ``[C]`` -> ``[..., H, N]``."""
    return x.reshape(*x.shape[:-1], heads, -1)


def wkv6(r: F64, k: F64, v: F64, decay: F64, bonus: F64, heads: int, state: F64) -> tuple[F64, F64]:
    """State ``[H, N key, N value]``; decay ``[T, C]`` or ``[C]``."""
    shape = r.shape
    w = split(np.broadcast_to(decay, shape), heads)
    r, k, v, u = split(r, heads), split(k, heads), split(v, heads), split(bonus, heads)
    y = np.empty_like(r)
    for t in range(len(r)):
        kv = k[t][:, :, None] * v[t][:, None, :]
        y[t] = np.einsum("hj,hji->hi", r[t], state + u[:, :, None] * kv)
        state = w[t][:, :, None] * state + kv
    return y.reshape(shape), state


def wkv7(
    r: F64,
    w: F64,
    k: F64,
    v: F64,
    a: F64,
    k_k: F64,
    k_a: F64,
    r_k: F64,
    heads: int,
    state: F64,
    *,
    v_first: F64 | None = None,
    v_mix: F64 | None = None,
    norm: tuple[F64, F64, float] | None = None,
    gate: F64 | None = None,
) -> tuple[F64, F64]:
    """State ``[H, N key, N value]``. Composed: removal key, delta rule, norm, bonus, gate."""
    shape = r.shape
    if v_mix is not None and v_first is not None:
        v = v + (v_first - v) * v_mix
    kk = split(k * k_k, heads)
    kk = kk / np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), 1e-12)
    k = k * (1 + (a - 1) * k_a)
    r, w, k, v, a = (split(x, heads) for x in (r, w, k, v, a))
    y = np.empty_like(r)
    for t in range(len(r)):
        removed = np.einsum("hj,hji->hi", kk[t], state)
        state = (
            w[t][:, :, None] * state
            - (a[t] * kk[t])[:, :, None] * removed[:, None, :]
            + k[t][:, :, None] * v[t][:, None, :]
        )
        y[t] = np.einsum("hj,hji->hi", r[t], state)
    y = y.reshape(shape)
    if norm is not None:
        weight, bias, eps = norm
        y = group_norm(y, weight, bias, heads, eps)
    y = y + ((r * k * split(r_k, heads)).sum(-1, keepdims=True) * v).reshape(shape)
    return (y if gate is None else y * gate), state
