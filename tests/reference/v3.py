"""RWKV v3: pre-LN with ln0, one mix per projection, the copy head optional. RWKV-LM/RWKV-v3."""

from __future__ import annotations

from reference.common import Array, Reference, State
from reference.v2 import V2


class V3(V2):
    eps = 1e-8

    def step(self, token: int, state: State) -> Array:
        x = self.norm(self.w["emb.weight"][token], "blocks.0.ln0")
        for i in range(self.sizes.n_layer):
            p = f"blocks.{i}."
            z = self.norm(x, p + "ln1")
            if i == 0 and self.sizes.ffn_pre:
                x = x + self.channel_mix(z, state, p + "ffnPre")
            else:
                x = x + self.time_mix(z, state, p + "att")
            x = x + self.channel_mix(self.norm(x, p + "ln2"), state, p + "ffn")
        x = self.norm(x, "ln_out")
        return self.linear(x, "head") + self.copy_head(x, token, state)

    def time_mix(self, z: Array, state: State, p: str) -> Array:
        prev = self.swap(state, p + ".shift", z)
        r = self.linear(self.mix(z, prev, p + ".time_mix_r"), p + ".receptance")
        k = self.linear(self.mix(z, prev, p + ".time_mix_k"), p + ".key")
        v = self.linear(self.mix(z, prev, p + ".time_mix_v"), p + ".value")
        return self.linear(self.wkv(r, k, v, state, p), p + ".output")

    def channel_mix(self, x: Array, state: State, p: str) -> Array:
        return Reference.channel_mix(self, x, state, p)
