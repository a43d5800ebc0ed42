"""RWKV v4 and the options of v4neo (arXiv:2305.13048; RWKV-LM/RWKV-v4neo).

v4 keeps v3's sums in the numerically stable form: aa and bb are scaled by e^{-pp}. Options, each
recognised by its tensors: ffnPre in block 0, the copy head (head_qk), MishGLU (`my_testing` g), a
small softmax attention beside att (`my_testing` a), and 4a's tiny attention.
"""

from __future__ import annotations

import numpy as np

from reference.common import Array, Reference, State, mish, sigmoid


class V4(Reference):
    def parts(self) -> list[tuple[str, tuple[int, ...], float]]:
        h, w = self.sizes, self.w
        out: list[tuple[str, tuple[int, ...], float]] = []
        for i in range(h.n_layer):
            p = f"blocks.{i}."
            if i == 0 and h.ffn_pre:
                out.append((p + "ffnPre.shift", (h.n_embd,), 0.0))
            else:
                out.append((p + "att.shift", (h.n_embd,), 0.0))
                out += [
                    (p + "att." + n, (h.n_att,), v)
                    for n, v in (("aa", 0), ("bb", 0), ("pp", -1e30))
                ]
            if p + "att.qq.weight" in w:
                width = w[p + "att.kk.weight"].shape[0]
                out += [(p + "att." + n, (h.ctx_len, width), 0.0) for n in ("kk", "vv")]
            out.append((p + "ffn.shift", (h.n_embd,), 0.0))
            if p + "tiny_q.weight" in w:
                out.append((p + "tiny_kv", (w[p + "tiny_q.weight"].shape[0], h.n_embd), 0.0))
        return out + self.copy_parts()

    def step(self, token: int, state: State) -> Array:
        w = self.w
        embedding = w["emb.weight"][token]
        x = self.norm(embedding, "blocks.0.ln0")
        for i in range(self.sizes.n_layer):
            p = f"blocks.{i}."
            z = self.norm(x, p + "ln1")
            if i == 0 and self.sizes.ffn_pre:
                x = x + self.channel_mix(z, state, p + "ffnPre")
            else:
                x = x + self.time_mix(z, state, p + "att")
            x = x + self.channel_mix(self.norm(x, p + "ln2"), state, p + "ffn")
            if p + "tiny_q.weight" in w:
                x = x + self.tiny_attention(self.norm(x, p + "tiny_ln"), embedding, state, p)
        x = self.norm(x, "ln_out")
        return self.linear(x, "head") + self.copy_head(x, token, state)

    def time_mix(self, z: Array, state: State, p: str) -> Array:
        prev = self.swap(state, p + ".shift", z)
        r = self.linear(self.mix(z, prev, p + ".time_mix_r"), p + ".receptance")
        k = self.linear(self.mix(z, prev, p + ".time_mix_k"), p + ".key")
        v = self.linear(self.mix(z, prev, p + ".time_mix_v"), p + ".value")
        y = self.linear(sigmoid(r) * self.wkv(k, v, state, p), p + ".output")
        if p + ".qq.weight" in self.w:
            y = y + self.softmax_attention(z, prev, state, p)
        return y

    def wkv(self, k: Array, v: Array, state: State, p: str) -> Array:
        w = -np.exp(self.w[p + ".time_decay"].reshape(-1))
        u = self.w[p + ".time_first"].reshape(-1)
        aa, bb, pp = (state[f"{p}.{name}"] for name in ("aa", "bb", "pp"))
        q = np.maximum(pp, u + k)
        past, now = np.exp(pp - q), np.exp(u + k - q)
        y = (past * aa + now * v) / (past * bb + now)
        q = np.maximum(pp + w, k)
        past, now = np.exp(pp + w - q), np.exp(k - q)
        state[p + ".aa"], state[p + ".bb"], state[p + ".pp"] = (
            past * aa + now * v,
            past * bb + now,
            q,
        )
        return y

    def softmax_attention(self, z: Array, prev: Array, state: State, p: str) -> Array:
        """`my_testing` a: causal attention of one narrow head."""
        t = state.position
        q, k, v = (
            self.linear(self.mix(z, prev, f"{p}.time_mix_{n}"), f"{p}.{n}")
            for n in ("qq", "kk", "vv")
        )
        state[p + ".kk"][t], state[p + ".vv"][t] = k, v
        scores = state[p + ".kk"][: t + 1] @ q / np.sqrt(len(q))
        weight = np.exp(scores - scores.max())
        return self.linear(weight / weight.sum() @ state[p + ".vv"][: t + 1], p + ".oo")

    def channel_mix(self, z: Array, state: State, p: str) -> Array:
        if p + ".aa.weight" not in self.w:
            return super().channel_mix(z, state, p)
        prev = self.swap(state, p + ".shift", z)  # `my_testing` g: MishGLU
        a = self.linear(self.mix(z, prev, p + ".time_mix_k"), p + ".aa")
        b = self.linear(self.mix(z, prev, p + ".time_mix_r"), p + ".bb")
        return self.linear(a * mish(b), p + ".value")

    def tiny_attention(self, z: Array, embedding: Array, state: State, p: str) -> Array:
        """4a: sum over i <= t of (q_t . k_i) D^{-1/2} v_i, v from the raw embedding row.

        There is no softmax, so the history is the sum of k_i v_i^T: a [D, C] matrix.
        """
        q, k = self.linear(z, p + "tiny_q"), self.linear(z, p + "tiny_k")
        v = self.linear(embedding, p + "tiny_v")
        state[p + "tiny_kv"] = state[p + "tiny_kv"] + np.outer(k, v)
        return q @ state[p + "tiny_kv"] / np.sqrt(len(q))
