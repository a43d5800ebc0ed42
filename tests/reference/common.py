"""What all versions share: detection, norms, activations, the model's frame."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]
Shapes = Mapping[str, tuple[int, ...]]

LN_EPS = 1e-5
# 1e-5 * 8^2: the official code divides y by head_size_divisor = 8 before a norm with 1e-5.
GN_EPS = 64e-5
# Of a copy head in a file without copy_mask: what v2 and v3 were trained with.
COPY_CONTEXT = 1024
BUFFERS = ("copy_mask", "att_mask", "tiny_mask")


@dataclass
class Sizes:
    """Version and hyperparameters of a checkpoint; 0 where they do not apply."""

    version: str = ""
    n_layer: int = 0
    n_embd: int = 0
    n_att: int = 0
    n_head: int = 0
    head_size: int = 0
    n_vocab: int = 0
    dim_ffn: int = 0
    ctx_len: int = 0  # 0: unlimited
    head_qk: int = 0  # width of the copy head's q and k
    ffn_pre: bool = False


class State(dict[str, Array]):
    """The parts of one stream's state by name, and how many tokens it has read."""

    position: int = 0


def detect(shapes: Shapes) -> Sizes:
    """Finds version and sizes from names and shapes alone (docs/versions.md, section 1)."""
    blocks = [int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in shapes) if m]
    h = Sizes(n_layer=1 + max(blocks))

    def find(rest: str) -> tuple[int, ...] | None:
        """Block 0 may lack att (ffnPre) or v0, v1, v2 (v7): the first block that has it."""
        names = (f"blocks.{i}.{rest}" for i in range(h.n_layer))
        return next((shapes[n] for n in names if n in shapes), None)

    def get(rest: str) -> tuple[int, ...]:
        shape = find(rest)
        assert shape is not None, f"no block has {rest}"
        return shape

    if "head_q.weight" in shapes:
        h.head_qk = shapes["head_q.weight"][0]

    if "tok_emb.weight" in shapes:
        h.version = "1"
        h.n_vocab, h.n_embd = shapes["tok_emb.weight"]
        h.n_head, h.ctx_len = get("attn.time_w")
        h.n_att = get("attn.key.weight")[0]
        h.head_size = h.n_att // h.n_head
        h.dim_ffn = get("mlp.key.weight")[0]
        return h

    h.n_vocab, h.n_embd = shapes["emb.weight"]
    h.n_att = get("att.key.weight")[0]
    h.dim_ffn = (find("ffn.key.weight") or find("ffn.aa.weight") or (0,))[0]
    h.ffn_pre = any(name.startswith("blocks.0.ffnPre.") for name in shapes)
    if h.head_qk:
        h.ctx_len = shapes.get("copy_mask", (COPY_CONTEXT,))[0]

    if find("att.r_k") is not None:
        h.version = "7.0a" if find("ffn.s_emb.weight") is not None else "7.0"
        h.n_head, h.head_size = get("att.r_k")
    elif find("att.time_maa_x") is not None:
        h.n_head, h.head_size = get("att.time_faaaa")[:2]
        if find("att.time_maa_rkvw_w1") is not None:
            h.version = "6.0b"  # 6.0c has the same names and shapes
        else:
            h.version = "6.0a" if find("att.gate_w1") is not None else "6.0"
    elif find("att.ln_x.weight") is not None:
        decay = get("att.time_decay")
        h.n_head = decay[0]
        h.head_size = h.n_att // h.n_head
        if find("att.gate.weight") is None:
            h.version = "5.0"
        else:
            h.version = "5.2" if int(np.prod(decay)) > h.n_head else "5.1"
    elif find("att.time_mix") is not None:
        h.version = "2"
    elif len(get("att.time_decay")) == 2:
        h.version = "3"
    else:
        h.version = "4"
        if find("tiny_q.weight") is not None:
            h.version = "4a"
        if find("att.qq.weight") is not None:
            h.ctx_len = (find("att.att_mask") or (COPY_CONTEXT,))[0]
    return h


def sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def mish(x: Array) -> Array:
    return x * np.tanh(np.logaddexp(0.0, x))


def relu_squared(x: Array) -> Array:
    return np.square(np.maximum(x, 0.0))


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = LN_EPS) -> Array:
    d = x - x.mean()
    return d / np.sqrt((d * d).mean() + eps) * weight + bias


def group_norm(y: Array, weight: Array, bias: Array, eps: float = GN_EPS) -> Array:
    """GroupNorm, one group per head. y [H, N] -> [C]."""
    d = y - y.mean(1, keepdims=True)
    return (d / np.sqrt((d * d).mean(1, keepdims=True) + eps)).reshape(-1) * weight + bias


class Reference:
    """The frame of a version: weights, named state, one token at a time.

    A version defines `parts` and `step`.
    """

    def __init__(self, weights: Weights, sizes: Sizes, dtype: Any = np.float64) -> None:
        self.sizes = sizes
        self.dtype = dtype
        self.w: dict[str, Array] = {}
        for name, a in weights.items():
            if name.split(".")[-1] in BUFFERS:
                continue
            a = np.asarray(a).astype(dtype)
            # Per-channel vectors are stored [1, 1, C].
            self.w[name] = a.reshape(-1) if a.ndim == 3 and a.shape[:2] == (1, 1) else a

    def parts(self) -> list[tuple[str, tuple[int, ...], float]]:
        """Name, shape and initial value of every part of the state, in order."""
        raise NotImplementedError

    def step(self, token: int, state: State) -> Array:
        """Reads one token. -> logits [V]. Updates `state` in place."""
        raise NotImplementedError

    def new_state(self) -> State:
        return State((n, np.full(shape, value, self.dtype)) for n, shape, value in self.parts())

    def forward(self, tokens: Sequence[int], state: State | None = None) -> tuple[Array, State]:
        """Reads tokens one by one. -> logits [T, V] and the advanced state."""
        state = self.new_state() if state is None else state
        rows = []
        for token in tokens:
            rows.append(self.step(int(token), state))
            state.position += 1
        return np.stack(rows), state

    def norm(self, x: Array, name: str) -> Array:
        return layer_norm(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def linear(self, x: Array, name: str) -> Array:
        y = self.w[name + ".weight"] @ x
        bias = self.w.get(name + ".bias")
        return y if bias is None else y + bias

    def mix(self, x: Array, prev: Array, name: str) -> Array:
        """v2-v5's token shift: the weight belongs to the current token."""
        m = self.w[name]
        return x * m + prev * (1.0 - m)

    @staticmethod
    def swap(state: State, name: str, x: Array) -> Array:
        """Leaves x in the state and returns what was there: the previous token's."""
        prev = state[name]
        state[name] = x
        return prev

    def channel_mix(self, z: Array, state: State, p: str) -> Array:
        """v3's, v4's and v5's channel mix, of z = LN(x)."""
        prev = self.swap(state, p + ".shift", z)
        k = relu_squared(self.linear(self.mix(z, prev, p + ".time_mix_k"), p + ".key"))
        r = sigmoid(self.linear(self.mix(z, prev, p + ".time_mix_r"), p + ".receptance"))
        return r * self.linear(k, p + ".value")

    def copy_parts(self) -> list[tuple[str, tuple[int, ...], float]]:
        h = self.sizes
        if not h.head_qk:
            return []
        return [("head_k.rows", (h.ctx_len, h.head_qk), 0.0), ("head_k.tokens", (h.ctx_len,), 0.0)]

    def copy_head(self, x: Array, token: int, state: State) -> Array:
        """c[token_i] += (q . k_i) / D for every i <= t; a token seen twice counts twice. -> [V]."""
        h, t = self.sizes, state.position
        c = np.zeros(h.n_vocab, self.dtype)
        if h.head_qk:
            state["head_k.rows"][t] = self.linear(x, "head_k")
            state["head_k.tokens"][t] = token
            scores = state["head_k.rows"][: t + 1] @ self.linear(x, "head_q") / h.head_qk
            np.add.at(c, state["head_k.tokens"][: t + 1].astype(int), scores)
        return c

    def heads(self, x: Array) -> Array:
        """[C] -> [H, N]."""
        return x.reshape(self.sizes.n_head, self.sizes.head_size)
