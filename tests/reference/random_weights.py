"""Random checkpoints of any version and size, made so that every term of the formulas matters.

Decays are spread over their range, norms are not trivial and low-rank factors are not zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from reference.common import Array


@dataclass(frozen=True, eq=False)  # hashed by identity
class Spec:
    """What to make. `ranks` by letter: v6 "m" (mix), "w" (decay), "g"; v7 "w", "a", "v", "g"."""

    version: str  # "1" ... "7.0", "4a", "6.0a", "6.0b", "7.0a"
    n_layer: int = 2
    n_embd: int = 32
    head_size: int = 8
    n_vocab: int = 37
    dim_ffn: int = 48
    ctx_len: int = 40
    head_qk: int = 0  # v2-v4; v1 always has it
    ffn_pre: bool = False  # v2-v4
    loud_keys: bool = False  # v1-v3: keys beyond the clamps
    faaaa: bool = True  # v5.0, v5.1: time_faaaa in place of time_first
    mish_glu: bool = False  # v4
    softmax_att: bool = False  # v4
    tiny_layer: int = 0  # 4a
    time_state: bool = False  # v6, v7
    value_lora_in_block_0: bool = False  # v7: block 0 has v0, v1, v2, which nobody reads
    ranks: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0

    @property
    def bounded(self) -> bool:
        """The model keeps a history of at most ctx_len tokens."""
        return self.version == "1" or self.head_qk > 0 or self.softmax_att

    def __str__(self) -> str:
        flags = ("ffn_pre", "loud_keys", "mish_glu", "softmax_att", "time_state")
        options = [name for name in flags if getattr(self, name)]
        if self.head_qk:
            options.append(f"head_qk{self.head_qk}")
        name = f"v{self.version}:{self.n_layer}x{self.n_embd}n{self.head_size}"
        return "-".join([name, f"V{self.n_vocab}", f"F{self.dim_ffn}", *options])


class _Maker:
    def __init__(self, spec: Spec) -> None:
        self.s = spec
        self.rng = np.random.default_rng(spec.seed)
        self.w: dict[str, Array] = {}

    def normal(self, name: str, *shape: int, scale: float = 1.0, mean: float = 0.0) -> None:
        self.w[name] = (mean + scale * self.rng.standard_normal(shape)).astype(np.float32)

    def uniform(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> None:
        self.w[name] = self.rng.uniform(low, high, shape).astype(np.float32)

    def linear(self, name: str, out: int, in_: int, scale: float = 1.0, bias: bool = False) -> None:
        self.normal(name + ".weight", out, in_, scale=scale / in_**0.5)
        if bias:
            self.normal(name + ".bias", out, scale=0.3)

    def norm(self, name: str, n: int) -> None:
        self.normal(name + ".weight", n, scale=0.2, mean=1.0)
        self.normal(name + ".bias", n, scale=0.2)

    def lora(self, one: str, two: str, in_: int, rank: int, out: int) -> None:
        self.normal(one, in_, rank, scale=1.0 / in_**0.5)
        self.normal(two, rank, out, scale=1.0 / rank**0.5)

    def make(self) -> dict[str, Array]:
        s = self.s
        v1 = s.version == "1"
        self.normal("tok_emb.weight" if v1 else "emb.weight", s.n_vocab, s.n_embd)
        if s.version[0] not in "12":
            self.norm("blocks.0.ln0", s.n_embd)
        for i in range(s.n_layer):
            p = f"blocks.{i}."
            self.norm(p + "ln1", s.n_embd)
            self.norm(p + "ln2", s.n_embd)
            if i == 0 and s.ffn_pre:
                self.channel_mix(p + "ffnPre.")
            else:
                getattr(self, "time_mix" + s.version[0])(p + ("attn." if v1 else "att."), i)
            self.channel_mix(p + ("mlp." if v1 else "ffn."))
            if s.version == "4a" and i == s.tiny_layer:
                self.norm(p + "tiny_ln", s.n_embd)
                self.linear(p + "tiny_q", 5, s.n_embd)
                self.linear(p + "tiny_k", 5, s.n_embd)
                self.linear(p + "tiny_v", s.n_embd, s.n_embd, scale=0.3)
        self.norm("ln_f" if v1 else "ln_out", s.n_embd)
        if v1:
            self.uniform("time_out", 1, s.ctx_len, 1, low=0.5, high=1.5)
        self.linear("head", s.n_vocab, s.n_embd)
        width = s.head_qk or (16 if v1 else 0)
        if width:
            for name in ("head_q", "head_k"):
                self.linear(name, width, s.n_embd, scale=2.0, bias=v1)
            self.w["copy_mask"] = np.tril(np.ones((s.ctx_len, s.ctx_len), np.float32))
        return self.w

    def channel_mix(self, p: str) -> None:
        s = self.s
        c, f = s.n_embd, s.dim_ffn
        if s.version == "1":
            for name in ("key", "value"):
                self.linear(p + name, f, c, bias=True)
            self.linear(p + "weight", c, f, bias=True)
            self.linear(p + "receptance", c, c, bias=True)
            return
        self.linear(p + "value", c, f)
        glu = s.mish_glu and not p.endswith("ffnPre.")  # 4neo's ffnPre is always the gated one
        if glu:
            for name in ("aa", "bb"):
                self.linear(p + name, f, c)
        else:
            self.linear(p + "key", f, c)
        if s.version == "2":
            self.uniform(p + "time_mix", 1, 1, c)
        elif s.version[0] == "7":
            self.uniform(p + "x_k", 1, 1, c)
        else:
            for name in "kr":
                self.uniform(
                    p + ("time_maa_" if s.version[0] == "6" else "time_mix_") + name, 1, 1, c
                )
        if s.version[0] != "7" and not glu:
            self.linear(p + "receptance", c, c)
        if s.version == "7.0a":
            self.normal(p + "s_emb.weight", s.n_vocab, 1024, scale=0.2)
            self.normal(p + "s_emb_x.weight", 1024, c, scale=0.2 / c**0.5)
            self.lora(p + "s1", p + "s2", c, 32, f)
            self.normal(p + "s0", 1, 1, f, mean=1.0, scale=0.3)

    def projections(self, p: str, *names: str, bias: bool = False) -> None:
        c = self.s.n_embd
        for name in names:
            self.linear(p + name, c, c, bias=bias)

    def time_mix1(self, p: str, layer: int) -> None:
        s = self.s
        heads = s.n_embd // s.head_size
        self.projections(p, "key", "value", "receptance", "output", bias=True)
        if s.loud_keys:
            self.w[p + "key.weight"][0] *= 80.0
        self.uniform(p + "time_w", heads, s.ctx_len)
        self.uniform(p + "time_alpha", heads, 1, s.ctx_len, low=0.5, high=1.5)
        self.uniform(p + "time_beta", heads, s.ctx_len, 1, low=0.5, high=1.5)
        self.uniform(p + "time_gamma", s.ctx_len, 1, low=0.5, high=1.5)

    def time_mix2(self, p: str, layer: int) -> None:
        c = self.s.n_embd
        self.projections(p, "receptance", "value", "output")
        self.linear(p + "key", c, c, scale=2.0)
        self.uniform(p + "time_decay", c, 1, low=-5.0, high=1.0)
        self.uniform(p + "time_first", c, 1, low=-2.0, high=1.0)
        for name in (
            ("time_mix",) if self.s.version == "2" else ("time_mix_k", "time_mix_v", "time_mix_r")
        ):
            self.uniform(p + name, 1, 1, c)
        if self.s.loud_keys:
            self.w[p + "key.weight"][0] *= 40.0

    time_mix3 = time_mix2

    def time_mix4(self, p: str, layer: int) -> None:
        s, c = self.s, self.s.n_embd
        self.projections(p, "receptance", "value", "output")
        self.linear(p + "key", c, c, scale=3.0)
        self.uniform(p + "time_decay", c, low=-6.0, high=2.0)
        self.uniform(p + "time_first", c, low=-3.0, high=3.0)
        for name in "kvr":
            self.uniform(f"{p}time_mix_{name}", 1, 1, c)
        if s.softmax_att:
            width = max(1, c // 16)
            for name in ("qq", "kk", "vv"):
                self.linear(p + name, width, c, scale=1.5)
                self.uniform(f"{p}time_mix_{name}", 1, 1, c)
            self.linear(p + "oo", c, width)
            self.w[p + "att_mask"] = np.tril(np.ones((s.ctx_len, s.ctx_len), np.float32))

    def time_mix5(self, p: str, layer: int) -> None:
        s, c = self.s, self.s.n_embd
        heads = c // s.head_size
        shape = (heads, s.head_size) if s.version == "5.2" else (heads,)
        self.projections(p, "receptance", "key", "value", "output")
        self.uniform(p + "time_decay", *shape, low=-6.0, high=1.0)
        self.normal(p + ("time_faaaa" if s.faaaa else "time_first"), *shape, scale=0.5)
        for name in "kvr":
            self.uniform(f"{p}time_mix_{name}", 1, 1, c)
        self.norm(p + "ln_x", c)
        if s.version != "5.0":
            self.projections(p, "gate")
            self.uniform(p + "time_mix_g", 1, 1, c)

    def time_mix6(self, p: str, layer: int) -> None:
        s, c = self.s, self.s.n_embd
        heads = c // s.head_size
        letters, factor = ("rkvw", "rkvw_w") if s.version in ("6.0b", "6.0c") else ("wkvrg", "w")
        mix, decay, gate = (s.ranks.get(letter, 6) for letter in "mwg")
        self.projections(p, "receptance", "key", "value", "output")
        for name in "x" + letters:
            self.uniform(f"{p}time_maa_{name}", 1, 1, c)
        self.normal(f"{p}time_maa_{factor}1", c, len(letters) * mix, scale=1.0 / c**0.5)
        self.normal(f"{p}time_maa_{factor}2", len(letters), mix, c, scale=0.3 / mix**0.5)
        self.uniform(p + "time_decay", 1, 1, c, low=-5.0, high=1.0)
        self.lora(p + "time_decay_w1", p + "time_decay_w2", c, decay, c)
        self.normal(p + "time_faaaa", heads, s.head_size, scale=0.5)
        self.norm(p + "ln_x", c)
        if s.version == "6.0":
            self.projections(p, "gate")
        elif s.version == "6.0a":
            self.lora(p + "gate_w1", p + "gate_w2", c, gate, c)
        if s.time_state:
            self.normal(p + "time_state", heads, s.head_size, s.head_size)

    def time_mix7(self, p: str, layer: int) -> None:
        s, c = self.s, self.s.n_embd
        heads = c // s.head_size
        self.projections(p, "receptance", "key", "value", "output")
        for name in "rwkvag":
            self.uniform(f"{p}x_{name}", 1, 1, c)
        for j, name in enumerate("wav"):
            if name != "v" or layer > 0 or s.value_lora_in_block_0:
                self.normal(f"{p}{name}0", 1, 1, c)
                self.lora(f"{p}{name}1", f"{p}{name}2", c, s.ranks.get(name, 5 + j), c)
        self.lora(p + "g1", p + "g2", c, s.ranks.get("g", 9), c)
        self.normal(p + "k_k", 1, 1, c, mean=0.85, scale=0.1)
        self.normal(p + "k_a", 1, 1, c, mean=1.0, scale=0.1)
        self.normal(p + "r_k", heads, s.head_size, scale=0.3)
        self.norm(p + "ln_x", c)
        if s.time_state:
            self.normal(p + "time_state", heads, s.head_size, s.head_size)


def random_weights(spec: Spec) -> dict[str, Array]:
    """Official tensor name -> float32 array."""
    return _Maker(spec).make()
