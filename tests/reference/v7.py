"""RWKV v7 "Goose" (arXiv:2503.14456; RWKV-LM/RWKV-v7) and v7a's DeepEmbed.

The state follows a generalised delta rule: S <- S (diag(w) - kk^T (kk a)) + v^T k. It is shown
[H, value, key], transposed against v5 and v6, and read after the update.
"""

from __future__ import annotations

import numpy as np

from reference.common import Array, Reference, State, group_norm, relu_squared, sigmoid


class V7(Reference):
    def parts(self) -> list[tuple[str, tuple[int, ...], float]]:
        h = self.sizes
        out: list[tuple[str, tuple[int, ...], float]] = []
        for i in range(h.n_layer):
            p = f"blocks.{i}."
            out += [
                (p + "att.shift", (h.n_embd,), 0.0),
                (p + "att.wkv", (h.n_head, h.head_size, h.head_size), 0.0),
                (p + "ffn.shift", (h.n_embd,), 0.0),
            ]
        return out

    def new_state(self) -> State:
        state = super().new_state()
        for name in state:  # time_state is stored [H, value, key], as the state
            trained = self.w.get(name.replace(".wkv", ".time_state"))
            if name.endswith(".wkv") and trained is not None:
                state[name] = trained.copy()
        return state

    def step(self, token: int, state: State) -> Array:
        x = first = self.norm(self.w["emb.weight"][token], "blocks.0.ln0")
        v_first: Array | None = None
        for i in range(self.sizes.n_layer):
            p = f"blocks.{i}."
            y, v_first = self.time_mix(self.norm(x, p + "ln1"), v_first, state, p + "att")
            x = x + y
            x = x + self.deep_channel_mix(self.norm(x, p + "ln2"), token, first, state, p + "ffn")
        return self.linear(self.norm(x, "ln_out"), "head")

    def time_mix(
        self, z: Array, v_first: Array | None, state: State, p: str
    ) -> tuple[Array, Array]:
        w = self.w
        delta = self.swap(state, p + ".shift", z) - z
        x = {c: z + delta * w[f"{p}.x_{c}"] for c in "rwkvag"}
        r = self.linear(x["r"], p + ".receptance")  # no sigmoid
        k = self.linear(x["k"], p + ".key")
        v = self.linear(x["v"], p + ".value")
        decay = sigmoid(w[p + ".w0"] + np.tanh(x["w"] @ w[p + ".w1"]) @ w[p + ".w2"])
        decay = np.exp(-np.exp(-0.5) * decay)
        a = sigmoid(w[p + ".a0"] + (x["a"] @ w[p + ".a1"]) @ w[p + ".a2"])
        gate = sigmoid(x["g"] @ w[p + ".g1"]) @ w[p + ".g2"]
        kk = self.heads(k * w[p + ".k_k"])
        kk = kk / np.maximum(np.sqrt((kk * kk).sum(1, keepdims=True)), 1e-12)
        k = k * (1.0 + (a - 1.0) * w[p + ".k_a"])
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * sigmoid(w[p + ".v0"] + (x["v"] @ w[p + ".v1"]) @ w[p + ".v2"])
        r, k, v_h, a, decay = (self.heads(t) for t in (r, k, v, a, decay))
        s = state[p + ".wkv"]
        removed = np.einsum("hij,hj->hi", s, -kk)
        s = (
            s * decay[:, None, :]
            + removed[:, :, None] * (kk * a)[:, None, :]
            + v_h[:, :, None] * k[:, None, :]
        )
        state[p + ".wkv"] = s
        y = group_norm(np.einsum("hij,hj->hi", s, r), w[p + ".ln_x.weight"], w[p + ".ln_x.bias"])
        y = y + ((r * k * self.heads(w[p + ".r_k"])).sum(1, keepdims=True) * v_h).reshape(-1)
        return self.linear(y * gate, p + ".output"), v_first

    def deep_channel_mix(self, z: Array, token: int, first: Array, state: State, p: str) -> Array:
        """No receptance gate. v7a: the hidden k is scaled by a token's own [D, D] matrix."""
        w = self.w
        prev = self.swap(state, p + ".shift", z)
        k = relu_squared(self.linear(z + (prev - z) * w[p + ".x_k"], p + ".key"))
        if p + ".s_emb.weight" in w:
            e = w[p + ".s_emb.weight"][token] + self.linear(first, p + ".s_emb_x")
            rank = w[p + ".s1"].shape[1]
            k = k * ((z @ w[p + ".s1"]) @ e.reshape(rank, rank) @ w[p + ".s2"] + w[p + ".s0"])
        return self.linear(k, p + ".value")
