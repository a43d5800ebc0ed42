"""RWKV v5.0, v5.1, v5.2: matrix-valued state (arXiv:2404.05892; RWKV-LM/RWKV-v5, v4neo's preview).

5.0 and 5.1 decay per head, 5.2 per channel; 5.1 and 5.2 have a gate. `time_first` is exponentiated,
`time_faaaa` is not.
"""

from __future__ import annotations

import numpy as np

from reference.common import Array, Reference, State, group_norm, silu


def wkv_heads(
    r: Array, k: Array, v: Array, decay: Array, bonus: Array, s: Array
) -> tuple[Array, Array]:
    """y = r (S + diag(u) k^T v), S' = diag(w) S + k^T v; per head. S [H, key, value]. -> y, S'."""
    kv = k[:, :, None] * v[:, None, :]
    return np.einsum("hi,hij->hj", r, bonus[:, :, None] * kv + s), decay[:, :, None] * s + kv


class V5(Reference):
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

    def step(self, token: int, state: State) -> Array:
        x = self.norm(self.w["emb.weight"][token], "blocks.0.ln0")
        for i in range(self.sizes.n_layer):
            p = f"blocks.{i}."
            x = x + self.time_mix(self.norm(x, p + "ln1"), state, p + "att")
            x = x + self.channel_mix(self.norm(x, p + "ln2"), state, p + "ffn")
        return self.linear(self.norm(x, "ln_out"), "head")

    def time_mix(self, z: Array, state: State, p: str) -> Array:
        w, n_head = self.w, self.sizes.n_head
        prev = self.swap(state, p + ".shift", z)
        r = self.linear(self.mix(z, prev, p + ".time_mix_r"), p + ".receptance")  # no sigmoid
        k = self.linear(self.mix(z, prev, p + ".time_mix_k"), p + ".key")
        v = self.linear(self.mix(z, prev, p + ".time_mix_v"), p + ".value")
        decay = np.exp(-np.exp(w[p + ".time_decay"].reshape(n_head, -1)))  # [H, 1] or [H, N]
        if p + ".time_first" in w:
            bonus = np.exp(w[p + ".time_first"].reshape(n_head, -1))
        else:
            bonus = w[p + ".time_faaaa"].reshape(n_head, -1)
        y, state[p + ".wkv"] = wkv_heads(
            self.heads(r), self.heads(k), self.heads(v), decay, bonus, state[p + ".wkv"]
        )
        y = group_norm(y, w[p + ".ln_x.weight"], w[p + ".ln_x.bias"])
        if p + ".gate.weight" in w:
            y = y * silu(self.linear(self.mix(z, prev, p + ".time_mix_g"), p + ".gate"))
        return self.linear(y, p + ".output")
