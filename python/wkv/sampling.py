"""How tokens are drawn from logits."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from . import _core
from .arguments import integer, text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Sampler", "Sampling"]


_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "typical",
    "top_a",
    "top_a_power",
    "top_p_x",
    "presence_penalty",
    "frequency_penalty",
    "penalty_decay",
)


def _check_number(name: str, value: object) -> None:
    if not hasattr(value, "__float__") and not hasattr(value, "__index__"):
        raise TypeError(f"[sampler] {name} must be a number, got {value!r}")


@dataclass(frozen=True)
class Sampling:
    """What to do with logits; every default is "off", so ``Sampling()`` draws from the model's own
    distribution. The steps, in this order:

    1. ``bias`` is added, ``ban`` sets -infinity, and from each token seen in the text so far
       ``presence_penalty + count * frequency_penalty`` is subtracted.
    2. p = softmax(logits); in variant ``"v1"`` softmax(logits / temperature).
    3. Cutoffs, each on what the ones before left: ``top_k``, ``top_a``, ``min_p``, ``typical``,
       ``top_p`` with ``top_p_x``. All but ``typical`` leave the most probable token.
    4. p ** (1 / temperature) (not in ``"v1"``), renormalised; one draw.

    Equal seeds and equal logits give equal tokens on every machine.

    Attributes:
        temperature: 0 is greedy: the largest logit after step 1, the lowest id among equals.
        top_p: Keep the most probable tokens until their sum reaches this; 1 or more: off.
        top_k: Keep so many; 0: off.
        min_p: Drop p < ``min_p`` * max(p).
        typical: Locally typical sampling: the mass to keep; 1 or more: off.
        top_a: Drop p < ``top_a`` * max(p) ** ``top_a_power``; 0: off, 0.2 as its author proposes.
        top_a_power: See ``top_a``.
        top_p_x: Top-p keeps every p > ``top_p_x`` as well; 0: off, 0.01 as its author proposes.
        presence_penalty: See step 1. The package ``rwkv`` calls it ``alpha_presence``.
        frequency_penalty: See step 1; ``alpha_frequency``.
        penalty_decay: Counts are multiplied by it at every token; ``alpha_decay``.
        digits_rule: Digits, blanks and tabs are seen but not counted, as in the package ``rwkv``:
            numbers may repeat. For :func:`wkv.generate`, which knows the text of a token.
        uncounted: More tokens that are seen but not counted.
        bias: What to add to the logits of tokens.
        ban: Tokens that are never drawn.
        seed: In [0, 2**64). None: another one for each :class:`Sampler`.
        variant: Whose rules hold at the borders: ``"pip"`` (the package ``rwkv``), ``"v1"``
            (RWKV-v1 and most other software: temperature first, top-p by rank on what is left,
            renormalised), ``"v2"`` (RWKV-v2 to v4) or ``"v7"`` (the demos of v7). See
            docs/sampling.md.

    Raises:
        ValueError: A parameter is out of its range.
        TypeError: A parameter is no number.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical: float = 1.0
    top_a: float = 0.0
    top_a_power: float = 2.0
    top_p_x: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_decay: float = 0.996
    digits_rule: bool = True
    uncounted: Iterable[int] = ()
    bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    ban: Iterable[int] = ()
    seed: int | None = None
    variant: Literal["pip", "v1", "v2", "v7"] = "pip"

    def __post_init__(self) -> None:
        object.__setattr__(self, "uncounted", tuple(self.uncounted))
        object.__setattr__(self, "ban", tuple(self.ban))
        object.__setattr__(self, "bias", dict(self.bias))
        for name in _NUMBERS:
            _check_number(name, getattr(self, name))
        for token, value in self.bias.items():
            _check_number(f"bias[{token!r}]", value)
        for name in ("uncounted", "ban", "bias"):
            for token in getattr(self, name):
                integer("sampler", f"a token of {name}", token, -(2**31), 2**31 - 1)
        integer("sampler", "top_k", self.top_k, 0, 2**31 - 1)
        text("sampler", "variant", self.variant)
        if self.seed is not None and not 0 <= integer("sampler", "seed", self.seed) < 2**64:
            raise ValueError(f"[sampler] seed must be in [0, 2**64), got {self.seed}")
        self._native(0)  # checks the rest

    def _native(self, seed: int) -> _core.Sampler:
        return _core.Sampler(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            typical=self.typical,
            top_a=self.top_a,
            top_a_power=self.top_a_power,
            top_p_x=self.top_p_x,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            penalty_decay=self.penalty_decay,
            uncounted=list(self.uncounted),
            bias=list(self.bias.items()),
            ban=list(self.ban),
            seed=seed,
            variant=self.variant,
        )


class Sampler:
    """Draws tokens for one stream of text: a :class:`Sampling`, the tokens seen, random numbers.

    Independent of any model. One thread at a time may use it.

        sampler = wkv.Sampler(wkv.Sampling(top_p=0.85, seed=1))
        token = sampler.sample(logits)
        sampler.accept(token)
    """

    __slots__ = ("_native", "sampling", "seed")

    sampling: Sampling
    seed: int  # of the random numbers; drawn if the sampling names none

    def __init__(self, sampling: Sampling | None = None) -> None:
        self.sampling = Sampling() if sampling is None else sampling
        seed = self.sampling.seed
        self.seed = secrets.randbits(64) if seed is None else seed
        self._native = self.sampling._native(self.seed)

    def sample(self, logits: ArrayLike) -> int:
        """Draws a token.

        Args:
            logits: ``[V]``; float32 arrays in one piece are read where they are. Not changed.

        Raises:
            ValueError: NaN or +infinity among the logits, every token ruled out, or a token of
                ``bias`` or ``ban`` outside the vocabulary.
        """
        return self._native.sample(logits)

    def probabilities(self, logits: ArrayLike) -> NDArray[np.float32]:
        """The probabilities, float32 ``[V]``, with which :meth:`sample` would draw."""
        return self._native.probabilities(logits)

    def adjust(self, logits: ArrayLike) -> NDArray[np.float32]:
        """The logits ``[V]`` after bias, bans and penalties."""
        return self._native.adjust(logits)

    def accept(self, token: int, weight: float = 1.0) -> None:
        """Tells the penalties that a token is part of the text.

        Args:
            token: What was drawn, or a token of the prompt.
            weight: How much it counts towards ``frequency_penalty``.
        """
        self._native.accept(token, weight)

    def reset(self) -> None:
        """Forgets the tokens seen and starts the random numbers anew."""
        self._native.reset()

    def copy(self) -> Sampler:
        """A sampler that goes on from the same place."""
        other = object.__new__(Sampler)
        other.sampling = self.sampling
        other.seed = self.seed
        other._native = self._native.copy()
        return other

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> Sampler:
        return self.copy()

    @property
    def position(self) -> int:
        """Draws so far: where the random numbers stand. May be set."""
        return self._native.position

    @position.setter
    def position(self, draws: int) -> None:
        self._native.position = draws
