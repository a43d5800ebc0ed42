"""RWKV v1: position-dependent weights over the whole history, no decay in the denominator.

RWKV-LM/RWKV-v1. Its program runs the last ctx_len tokens again for every new one; here the products
k v of all past tokens are the state.
"""

from __future__ import annotations

import numpy as np

from reference.common import Array, Reference, State, mish, sigmoid


class V1(Reference):
    def parts(self) -> list[tuple[str, tuple[int, ...], float]]:
        h = self.sizes
        out: list[tuple[str, tuple[int, ...], float]] = []
        for i in range(h.n_layer):
            p = f"blocks.{i}."
            out += [
                (p + "attn.shift", (h.n_embd,), 0.0),
                (p + "attn.sum_k", (h.n_att,), 0.0),
                (p + "attn.kv", (h.ctx_len, h.n_head, h.head_size), 0.0),
                (p + "mlp.shift", (h.n_embd,), 0.0),
            ]
        return out + self.copy_parts()

    def half_shift(self, z: Array, state: State, name: str) -> Array:
        """The first half of the channels comes from the previous token."""
        half = self.sizes.n_embd // 2
        prev = self.swap(state, name, z)
        return np.concatenate([prev[:half], z[half:]])

    def step(self, token: int, state: State) -> Array:
        w, t = self.w, state.position
        x = w["tok_emb.weight"][token]
        for i in range(self.sizes.n_layer):
            p = f"blocks.{i}."
            x = x + self.time_mix(self.norm(x, p + "ln1"), state, p + "attn")
            x = x + self.channel_mix(self.norm(x, p + "ln2"), state, p + "mlp")
        x = self.norm(x, "ln_f")
        copied = self.copy_head(x, token, state)  # of x before time_out
        return self.linear(x * w["time_out"].reshape(-1)[t], "head") + copied

    def time_mix(self, z: Array, state: State, p: str) -> Array:
        h, w, t = self.sizes, self.w, state.position
        m = self.half_shift(z, state, p + ".shift")
        k = np.exp(np.clip(self.linear(m, p + ".key"), -60.0, 30.0))
        v = self.linear(m, p + ".value")
        r = sigmoid(self.linear(m, p + ".receptance"))
        state[p + ".sum_k"] = state[p + ".sum_k"] + k
        state[p + ".kv"][t] = self.heads(k * v)
        u = np.arange(t + 1)
        alpha = w[p + ".time_alpha"].reshape(h.n_head, h.ctx_len)
        beta = w[p + ".time_beta"].reshape(h.n_head, h.ctx_len)
        weight = w[p + ".time_w"][:, h.ctx_len - 1 - (t - u)] * alpha[:, u] * beta[:, t, None]
        wkv = np.einsum("hu,uhn->hn", weight, state[p + ".kv"][: t + 1]).reshape(-1)
        gamma = w[p + ".time_gamma"].reshape(-1)[t]
        return self.linear(r * wkv / state[p + ".sum_k"], p + ".output") * gamma

    def channel_mix(self, z: Array, state: State, p: str) -> Array:
        m = self.half_shift(z, state, p + ".shift")
        gated = mish(self.linear(m, p + ".key")) * self.linear(m, p + ".value")
        return sigmoid(self.linear(m, p + ".receptance")) * self.linear(gated, p + ".weight")
