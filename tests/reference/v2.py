"""RWKV v2-RNN: the first recurrent one. Its LayerNorms normalise the residual stream itself.

RWKV-LM/RWKV-v2-RNN.
"""

from __future__ import annotations

import numpy as np

from reference.common import Array, Reference, State, relu_squared, sigmoid

K_CLAMP = 60.0


class V2(Reference):
    eps = 1e-16

    def parts(self) -> list[tuple[str, tuple[int, ...], float]]:
        h = self.sizes
        out: list[tuple[str, tuple[int, ...], float]] = []
        for i in range(h.n_layer):
            if i == 0 and h.ffn_pre:
                out.append(("blocks.0.ffnPre.shift", (h.n_embd,), 0.0))
            else:
                p = f"blocks.{i}.att."
                out.append((p + "shift", (h.n_embd,), 0.0))
                out += [(p + name, (h.n_att,), 0.0) for name in ("aa", "bb")]
            out.append((f"blocks.{i}.ffn.shift", (h.n_embd,), 0.0))
        return out + self.copy_parts()

    def step(self, token: int, state: State) -> Array:
        x = self.w["emb.weight"][token]
        for i in range(self.sizes.n_layer):
            p = f"blocks.{i}."
            x = self.norm(x, p + "ln1")
            if i == 0 and self.sizes.ffn_pre:
                x = x + self.channel_mix(x, state, p + "ffnPre")
            else:
                x = x + self.time_mix(x, state, p + "att")
            x = self.norm(x, p + "ln2")
            x = x + self.channel_mix(x, state, p + "ffn")
        x = self.norm(x, "ln_out")
        return self.linear(x, "head") + self.copy_head(x, token, state)

    def time_mix(self, x: Array, state: State, p: str) -> Array:
        m = self.mix(x, self.swap(state, p + ".shift", x), p + ".time_mix")
        r, k, v = (self.linear(m, f"{p}.{name}") for name in ("receptance", "key", "value"))
        return self.linear(self.wkv(r, k, v, state, p), p + ".output")

    def wkv(self, r: Array, k: Array, v: Array, state: State, p: str) -> Array:
        """y = sigmoid(r) (aa + e^u k v) / (bb + e^u k + eps); then aa, bb take k v and k."""
        decay = np.exp(-np.exp(self.w[p + ".time_decay"].reshape(-1)))
        first = np.exp(self.w[p + ".time_first"].reshape(-1))
        k = np.exp(np.minimum(k, K_CLAMP))
        aa, bb = state[p + ".aa"], state[p + ".bb"]
        y = sigmoid(r) * (aa + first * k * v) / (bb + first * k + self.eps)
        state[p + ".aa"], state[p + ".bb"] = decay * aa + k * v, decay * bb + k
        return y

    def channel_mix(self, x: Array, state: State, p: str) -> Array:
        m = self.mix(x, self.swap(state, p + ".shift", x), p + ".time_mix")
        k = relu_squared(self.linear(m, p + ".key"))
        return sigmoid(self.linear(m, p + ".receptance")) * self.linear(k, p + ".value")
