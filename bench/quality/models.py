"""RWKV v4, v5.2, v6 and v7 in torch, for training small byte-level models (GPT mode).

Every time mix runs whole chunks of tokens at once (exact, fp32): within a chunk the recurrence is
a masked product, between chunks the state is carried. Parameter names are the checkpoint's, so
`state_dict()` is a model file. Formulas: docs/versions.md.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 16  # v5 to v7 divide by decays accumulated over a chunk; v7: 0.545^-16 = 1.6e4
FASTEST = -4.0  # log of the fastest decay of v5 and v6 here: exp(4 * 16) = 6e27 is fp32
CHUNK_4 = 64
HEAD_SIZE = 64
GROUP_NORM_EPS = 64e-5


def previous(x: Tensor) -> Tensor:
    """The sequence one token later: row t holds x[t - 1]; zeros before the first token."""
    return F.pad(x, (0, 0, 1, -1))


def ramp(n: int, low: float, high: float, power: float = 1.0) -> Tensor:
    """n values from low to high: every model needs slow and fast channels from the start."""
    return low + (high - low) * torch.linspace(0, 1, n) ** power


def shares(n: int, depth: float, *, past: bool) -> nn.Parameter:
    """Token shift at the start: from all past to all present, the deeper the more present."""
    present = ramp(n, 0.0, 1.0, 1.0 - 0.9 * depth)
    return nn.Parameter((1 - present if past else present).view(1, 1, n))


class Linear(nn.Linear):
    """A projection without bias; `gain` scales its random start, 0 starts it silent."""

    def __init__(self, n_in: int, n_out: int, gain: float = 1.0) -> None:
        super().__init__(n_in, n_out, bias=False)
        nn.init.normal_(self.weight, std=gain / math.sqrt(n_in))


class GatedChannelMix(nn.Module):
    """Channel mix of v4 to v6: sigmoid(W_r x) * W_v relu(W_k x)^2."""

    def __init__(self, n_embd: int, dim_ffn: int, layer: float, *, past: bool) -> None:
        super().__init__()
        self.past = past
        for name in "kr":
            setattr(self, self.mix_name(name), shares(n_embd, layer, past=past))
        self.key = Linear(n_embd, dim_ffn)
        self.receptance = Linear(n_embd, n_embd, gain=0.0)
        self.value = Linear(dim_ffn, n_embd, gain=0.0)

    def mix_name(self, name: str) -> str:
        return f"time_{'maa' if self.past else 'mix'}_{name}"

    def forward(self, x: Tensor) -> Tensor:
        xk, xr = (mix(self, x, self.mix_name(name), past=self.past) for name in "kr")
        return torch.sigmoid(self.receptance(xr)) * self.value(torch.relu(self.key(xk)) ** 2)


def mix(module: nn.Module, x: Tensor, name: str, *, past: bool) -> Tensor:
    """Token shift: `past` says whether the parameter is the share of the past or the present."""
    share = getattr(module, name)
    return torch.lerp(x, previous(x), share if past else 1 - share)


class TimeMix4(nn.Module):
    def __init__(self, n_embd: int, layer: float) -> None:
        super().__init__()
        for name in "kvr":
            setattr(self, f"time_mix_{name}", shares(n_embd, layer, past=False))
        self.time_decay = nn.Parameter(ramp(n_embd, -5.0, 3.0, 0.7 + 1.3 * layer))
        self.time_first = nn.Parameter(torch.full((n_embd,), math.log(0.3)))
        self.key = Linear(n_embd, n_embd, gain=0.5)
        self.value = Linear(n_embd, n_embd)
        self.receptance = Linear(n_embd, n_embd, gain=0.0)
        self.output = Linear(n_embd, n_embd, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        xk, xv, xr = (mix(self, x, f"time_mix_{name}", past=False) for name in "kvr")
        k, v, r = self.key(xk), self.value(xv), torch.sigmoid(self.receptance(xr))
        return self.output(r * wkv4(k, v, -torch.exp(self.time_decay), self.time_first))


def wkv4(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """k, v [B, T, C], w = -exp(time_decay) and u [C] -> [B, T, C].

    The decay of a channel is constant, so a chunk is a product with its [t, s] matrix of powers.
    Keys are taken relative to the channel's largest: what underflows (87 below it) has no weight.
    """
    batch, _, channels = k.shape
    top = k.amax(1, keepdim=True).detach()
    weight = torch.exp(k - top)
    now = torch.exp(u) * weight
    pairs = torch.stack([weight * v, weight]).permute(3, 2, 0, 1)  # [C, T, 2, B]
    t = torch.arange(CHUNK_4, device=k.device)
    lag = t[:, None] - 1 - t[None, :]
    powers = torch.exp(lag.clamp(min=0) * w[:, None, None]) * (lag >= 0)  # [C, t, s]
    carry = torch.exp(t * w[:, None])[..., None]  # [C, t, 1]
    left = torch.exp((CHUNK_4 - 1 - t) * w[:, None])[:, None]  # [C, 1, s]
    faded = torch.exp(CHUNK_4 * w)[:, None, None]
    state = k.new_zeros(channels, 1, 2 * batch)
    out = []
    for chunk in pairs.flatten(2).split(CHUNK_4, 1):
        out.append(torch.baddbmm(carry * state, powers, chunk))
        state = torch.baddbmm(faded * state, left, chunk)
    past = torch.cat(out, 1).unflatten(2, (2, batch)).permute(2, 3, 1, 0)
    return (past[0] + now * v) / (past[1] + now + 1e-30)


class TimeMix5(nn.Module):
    def __init__(self, n_embd: int, layer: float) -> None:
        super().__init__()
        heads = n_embd // HEAD_SIZE
        for name in "kvrg":
            setattr(self, f"time_mix_{name}", shares(n_embd, layer, past=False))
        decay = ramp(n_embd, -6.0, -0.5, 0.7 + 1.3 * layer)
        self.time_decay = nn.Parameter(decay.view(heads, HEAD_SIZE))
        self.time_faaaa = nn.Parameter(torch.full((heads, HEAD_SIZE), 0.5))
        self.receptance, self.key = Linear(n_embd, n_embd, 0.5), Linear(n_embd, n_embd, 0.3)
        self.value, self.gate = Linear(n_embd, n_embd), Linear(n_embd, n_embd, 0.5)
        self.output = Linear(n_embd, n_embd, gain=0.0)
        self.ln_x = nn.GroupNorm(heads, n_embd, eps=GROUP_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        xk, xv, xr, xg = (mix(self, x, f"time_mix_{name}", past=False) for name in "kvrg")
        log_w = -torch.exp(self.time_decay).flatten().expand_as(x)
        y = wkv6(self.receptance(xr), self.key(xk), self.value(xv), log_w, self.time_faaaa)
        return self.output(self.ln_x(y.flatten(0, 1)).view_as(x) * F.silu(self.gate(xg)))


def wkv6(r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor) -> Tensor:
    """r, k, v, log of the decay [B, T, C], u [H, N] -> y [B, T, C]; state [B, H, key, value]."""
    batch, length, channels = r.shape
    heads, size = u.shape

    def chunks(x: Tensor) -> tuple[Tensor, ...]:
        return x.view(batch, length, heads, size).transpose(1, 2).split(CHUNK, 2)

    state = r.new_zeros(batch, heads, size, size)
    log_w = log_w.clamp(min=FASTEST)
    out = []
    for rc, kc, vc, wc in zip(chunks(r), chunks(k), chunks(v), chunks(log_w), strict=True):
        total = wc.cumsum(2)  # decay from the chunk's start through token t, in logs
        seen, kept = rc * torch.exp(total - wc), kc * torch.exp(-total)
        scores = torch.tril(seen @ kept.transpose(2, 3), -1)
        scores = scores + torch.diag_embed((rc * u[:, None] * kc).sum(-1))
        out.append(scores @ vc + seen @ state)
        state = torch.exp(total[:, :, -1])[..., None] * (state + kept.transpose(2, 3) @ vc)
    return torch.cat(out, 2).transpose(1, 2).reshape(batch, length, channels)


class TimeMix6(nn.Module):
    def __init__(self, n_embd: int, layer: float, mix_rank: int = 16, decay_rank: int = 32) -> None:
        super().__init__()
        heads = n_embd // HEAD_SIZE
        for name in "xwkvrg":
            setattr(self, f"time_maa_{name}", shares(n_embd, layer, past=True))
        self.time_maa_w1 = nn.Parameter(torch.zeros(n_embd, 5 * mix_rank))
        self.time_maa_w2 = nn.Parameter(torch.randn(5, mix_rank, n_embd) * 0.1)
        decay = ramp(n_embd, -6.0, -0.5, 0.7 + 1.3 * layer)
        self.time_decay = nn.Parameter(decay.view(1, 1, n_embd))
        self.time_decay_w1 = nn.Parameter(torch.zeros(n_embd, decay_rank))
        self.time_decay_w2 = nn.Parameter(torch.randn(decay_rank, n_embd) * 0.1)
        self.time_faaaa = nn.Parameter(torch.full((heads, HEAD_SIZE), 0.5))
        self.receptance, self.key = Linear(n_embd, n_embd, 0.5), Linear(n_embd, n_embd, 0.3)
        self.value, self.gate = Linear(n_embd, n_embd), Linear(n_embd, n_embd, 0.5)
        self.output = Linear(n_embd, n_embd, gain=0.0)
        self.ln_x = nn.GroupNorm(heads, n_embd, eps=GROUP_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        delta = previous(x) - x
        low = torch.tanh((x + delta * self.time_maa_x) @ self.time_maa_w1)
        mixes = torch.einsum("btjd,jdc->jbtc", low.unflatten(-1, (5, -1)), self.time_maa_w2)
        xw, xk, xv, xr, xg = (
            x + delta * (getattr(self, f"time_maa_{name}") + m)
            for name, m in zip("wkvrg", mixes, strict=True)
        )
        log_w = -torch.exp(
            self.time_decay + torch.tanh(xw @ self.time_decay_w1) @ self.time_decay_w2
        )
        y = wkv6(self.receptance(xr), self.key(xk), self.value(xv), log_w, self.time_faaaa)
        return self.output(self.ln_x(y.flatten(0, 1)).view_as(x) * F.silu(self.gate(xg)))


class TimeMix7(nn.Module):
    def __init__(self, n_embd: int, layer: float, rank: int = 32) -> None:
        super().__init__()
        heads = n_embd // HEAD_SIZE
        for name in "rwkvag":
            setattr(self, f"x_{name}", shares(n_embd, layer, past=True))
        start = {"w": ramp(n_embd, -6.0, 0.0, 0.7 + 1.3 * layer), "a": torch.zeros(n_embd)}
        if layer > 0:
            start["v"] = torch.ones(n_embd)
        for name, bias in start.items():
            setattr(self, f"{name}0", nn.Parameter(bias.view(1, 1, n_embd)))
        for name in [*start, "g"]:
            setattr(self, f"{name}1", nn.Parameter(torch.zeros(n_embd, rank)))
            setattr(self, f"{name}2", nn.Parameter(torch.randn(rank, n_embd) * 0.1))
        nn.init.normal_(self.g1, std=1 / math.sqrt(n_embd))
        nn.init.normal_(self.g2, std=2 / math.sqrt(rank))
        self.k_k = nn.Parameter(torch.full((1, 1, n_embd), 0.85))
        self.k_a = nn.Parameter(torch.ones(1, 1, n_embd))
        self.r_k = nn.Parameter(torch.zeros(heads, HEAD_SIZE))
        self.receptance, self.key = Linear(n_embd, n_embd, 0.5), Linear(n_embd, n_embd, 0.3)
        self.value = Linear(n_embd, n_embd, 0.5)
        self.output = Linear(n_embd, n_embd, gain=0.0)
        self.ln_x = nn.GroupNorm(heads, n_embd, eps=GROUP_NORM_EPS)

    def forward(self, x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        xr, xw, xk, xv, xa, xg = (mix(self, x, f"x_{name}", past=True) for name in "rwkvag")
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        log_w = -math.exp(-0.5) * torch.sigmoid(self.w0 + torch.tanh(xw @ self.w1) @ self.w2)
        a = torch.sigmoid(self.a0 + xa @ self.a1 @ self.a2)
        g = torch.sigmoid(xg @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:
            v = torch.lerp(v, v_first, torch.sigmoid(self.v0 + xv @ self.v1 @ self.v2))

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (-1, HEAD_SIZE))

        kk = F.normalize(heads(k * self.k_k), dim=-1, eps=1e-12).flatten(-2)
        k = k * (1 + (a - 1) * self.k_a)
        y = wkv7(r, log_w, k, v, -kk, kk * a)
        y = self.ln_x(y.flatten(0, 1)).view_as(x)
        bonus = (heads(r) * heads(k) * self.r_k).sum(-1, keepdim=True) * heads(v)
        return self.output((y + bonus.flatten(-2)) * g), v_first


def wkv7(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """S <- S (diag(w) + a^T b) + v^T k, y = S r, all [B, T, C]; chunks in the WY form."""
    batch, length, channels = r.shape

    def chunks(x: Tensor) -> tuple[Tensor, ...]:
        return x.view(batch, length, -1, HEAD_SIZE).transpose(1, 2).split(CHUNK, 2)

    state = r.new_zeros(batch, channels // HEAD_SIZE, HEAD_SIZE, HEAD_SIZE)  # [key, value]
    one = torch.eye(CHUNK, device=r.device)
    out = []
    for rc, wc, kc, vc, ac, bc in zip(*map(chunks, (r, log_w, k, v, a, b)), strict=True):
        total = wc.cumsum(2)
        decay, inverse = torch.exp(total), torch.exp(-total)
        r_, a_ = rc * decay, ac * torch.exp(total - wc)
        k_, b_ = kc * inverse, bc * inverse
        u = torch.linalg.solve_triangular(
            one - torch.tril(a_ @ b_.transpose(2, 3), -1),
            a_ @ state + torch.tril(a_ @ k_.transpose(2, 3), -1) @ vc,
            upper=False,
        )
        out.append(
            r_ @ state
            + torch.tril(r_ @ k_.transpose(2, 3)) @ vc
            + torch.tril(r_ @ b_.transpose(2, 3)) @ u
        )
        state = decay[:, :, -1, :, None] * (
            state + k_.transpose(2, 3) @ vc + b_.transpose(2, 3) @ u
        )
    return torch.cat(out, 2).transpose(1, 2).reshape(batch, length, channels)


class ChannelMix7(nn.Module):
    def __init__(self, n_embd: int, dim_ffn: int, layer: float) -> None:
        super().__init__()
        self.x_k = shares(n_embd, layer, past=True)
        self.key = Linear(n_embd, dim_ffn)
        self.value = Linear(dim_ffn, n_embd, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(torch.relu(self.key(mix(self, x, "x_k", past=True))) ** 2)


class Block(nn.Module):
    def __init__(self, version: str, n_embd: int, layer: int, n_layer: int) -> None:
        super().__init__()
        depth = layer / max(n_layer - 1, 1)
        if layer == 0:
            self.ln0 = nn.LayerNorm(n_embd)
        self.ln1, self.ln2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        if version == "7":
            self.att: nn.Module = TimeMix7(n_embd, depth)
            self.ffn: nn.Module = ChannelMix7(n_embd, 4 * n_embd, depth)
        else:
            self.att = {"4": TimeMix4, "5.2": TimeMix5, "6": TimeMix6}[version](n_embd, depth)
            dim_ffn = 4 * n_embd if version == "4" else int(3.5 * n_embd) // 32 * 32
            self.ffn = GatedChannelMix(n_embd, dim_ffn, depth, past=version == "6")


class RWKV(nn.Module):
    """A byte-level language model. `forward` maps [B, T] ids to [B, T, 256] logits."""

    def __init__(
        self, version: str, n_layer: int = 5, n_embd: int = 192, n_vocab: int = 256
    ) -> None:
        super().__init__()
        self.version = version
        self.emb = nn.Embedding(n_vocab, n_embd)
        nn.init.uniform_(self.emb.weight, -0.1, 0.1)
        self.blocks = nn.ModuleList(Block(version, n_embd, i, n_layer) for i in range(n_layer))
        self.ln_out = nn.LayerNorm(n_embd)
        self.head = Linear(n_embd, n_vocab, gain=0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.blocks[0].ln0(self.emb(ids))
        v_first = None
        for block in self.blocks:
            if self.version == "7":
                y, v_first = block.att(block.ln1(x), v_first)
                x = x + y
            else:
                x = x + block.att(block.ln1(x))
            x = x + block.ffn(block.ln2(x))
        return self.head(self.ln_out(x))
