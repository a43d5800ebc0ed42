"""The ops that look back at a history, in numpy float64: v1 to v3 and the research variants.

Rows are the tokens of one sequence from position `at` on. Histories are `[ctx, ...]`; every op
returns its result and the new history.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def remember(x: F64, history: F64, at: int) -> F64:
    """Row t goes to position at + t."""
    history = history.copy()
    history[at : at + len(x)] = x
    return history


def wkv1(
    r: F64,
    k: F64,
    v: F64,
    time_w: F64,
    time_alpha: F64,
    time_beta: F64,
    sum_k: F64,
    history: F64,
    at: int,
) -> tuple[F64, F64, F64]:
    """Curves `[H, ctx]`, history `[ctx, C]`. -> y, sum_k, history."""
    heads, ctx = time_w.shape
    k = np.exp(np.clip(k, -60, 30))
    history = remember(k * v, history, at)
    y = np.empty_like(r)
    for i in range(len(r)):
        t = at + i
        sum_k = sum_k + k[i]
        for h, channels in enumerate(np.split(np.arange(r.shape[1]), heads)):
            total = sum(
                time_w[h, ctx - 1 - (t - u)]
                * time_alpha[h, u]
                * time_beta[h, t]
                * history[u, channels]
                for u in range(t + 1)
            )
            y[i, channels] = r[i, channels] * total / sum_k[channels]
    return y, sum_k, history


def wkv2(r: F64, k: F64, v: F64, decay: F64, bonus: F64, eps: float, state: F64) -> tuple[F64, F64]:
    """State `[2, C]` is aa, bb."""
    k = np.exp(np.minimum(k, 60))
    aa, bb = state
    y = np.empty_like(r)
    for t in range(len(r)):
        y[t] = r[t] * (aa + bonus * k[t] * v[t]) / (bb + bonus * k[t] + eps)
        aa, bb = decay * aa + k[t] * v[t], decay * bb + k[t]
    return y, np.stack([aa, bb])


def copied(q: F64, keys: F64, tokens: NDArray[np.int64], vocabulary: int, scale: float) -> F64:
    """What one row adds to its logits: a token seen twice counts twice."""
    logits = np.zeros(vocabulary)
    np.add.at(logits, tokens, scale * keys @ q)
    return logits


def attention(q: F64, keys: F64, values: F64, at: int) -> F64:
    """Causal softmax attention of one head over complete histories."""
    y = np.empty((len(q), values.shape[1]))
    for i in range(len(q)):
        scores = keys[: at + i + 1] @ q[i] / np.sqrt(q.shape[1])
        weights = np.exp(scores - scores.max())
        y[i] = weights @ values[: at + i + 1] / weights.sum()
    return y


def linear_attention(q: F64, k: F64, v: F64, scale: float, state: F64) -> tuple[F64, F64]:
    """State `[D, C]` is the sum of k^T v."""
    y = np.empty_like(v)
    for t in range(len(q)):
        state = state + np.outer(k[t], v[t])
        y[t] = scale * q[t] @ state
    return y, state
