"""RWKV v6 "Finch" (arXiv:2404.05892; RWKV-LM/RWKV-v5, x060) and its siblings x060a, b, c.

Token shift says how much of the *previous* token to take, and data decides: mixes and decay are
low-rank functions of the input. x060a has a low-rank gate without silu; x060b has no gate, one
LayerNorm over all channels and its mixes in the order r, k, v, w; x060c is b with k (1 - decay).
"""

from __future__ import annotations

import numpy as np

from reference.common import Array, State, group_norm, layer_norm, relu_squared, sigmoid, silu
from reference.v5 import V5, wkv_heads


class V6(V5):
    def new_state(self) -> State:
        state = super().new_state()
        for name in state:  # time_state is stored [H, value, key]
            trained = self.w.get(name.replace(".wkv", ".time_state"))
            if name.endswith(".wkv") and trained is not None:
                state[name] = trained.transpose(0, 2, 1).copy()
        return state

    def time_mix(self, z: Array, state: State, p: str) -> Array:
        w, version = self.w, self.sizes.version
        w1, w2, letters = p + ".time_maa_w1", p + ".time_maa_w2", "wkvrg"
        if w1 not in w:
            w1, w2, letters = p + ".time_maa_rkvw_w1", p + ".time_maa_rkvw_w2", "rkvw"
        delta = self.swap(state, p + ".shift", z) - z
        low = np.tanh((z + delta * w[p + ".time_maa_x"]) @ w[w1]).reshape(len(letters), -1)
        x = {
            c: z + delta * (w[f"{p}.time_maa_{c}"] + low[j] @ w[w2][j])
            for j, c in enumerate(letters)
        }
        r = self.linear(x["r"], p + ".receptance")
        k = self.linear(x["k"], p + ".key")
        v = self.linear(x["v"], p + ".value")
        decay = w[p + ".time_decay"].reshape(-1)
        decay = decay + np.tanh(x["w"] @ w[p + ".time_decay_w1"]) @ w[p + ".time_decay_w2"]
        decay = np.exp(-np.exp(decay))
        if version == "6.0c":
            k = k * (1.0 - decay)
        r, k, v, decay = (self.heads(a) for a in (r, k, v, decay))
        bonus = self.heads(w[p + ".time_faaaa"])
        y, state[p + ".wkv"] = wkv_heads(r, k, v, decay, bonus, state[p + ".wkv"])
        if version in ("6.0b", "6.0c"):
            y = layer_norm(y.reshape(-1), w[p + ".ln_x.weight"], w[p + ".ln_x.bias"])
        else:
            y = group_norm(y, w[p + ".ln_x.weight"], w[p + ".ln_x.bias"])
        if version == "6.0":
            y = y * silu(self.linear(x["g"], p + ".gate"))
        elif version == "6.0a":
            y = y * (np.tanh(x["g"] @ w[p + ".gate_w1"]) @ w[p + ".gate_w2"])
        return self.linear(y, p + ".output")

    def channel_mix(self, z: Array, state: State, p: str) -> Array:
        w = self.w
        delta = self.swap(state, p + ".shift", z) - z
        k = relu_squared(self.linear(z + delta * w[p + ".time_maa_k"], p + ".key"))
        r = sigmoid(self.linear(z + delta * w[p + ".time_maa_r"], p + ".receptance"))
        return r * self.linear(k, p + ".value")
