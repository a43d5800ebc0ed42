"""Perplexity of a model on a text: how well it predicts, in bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .model import Model

#: Called with the tokens read so far and the total.
EvalProgress = Callable[[int, int], object]


@dataclass(frozen=True)
class Perplexity:
    """What `perplexity` measured.

    Attributes:
        tokens: Tokens predicted.
        bytes: Bytes of text they stand for.
        nats: Sum of -ln p(token) over all tokens.
    """

    tokens: int
    bytes: int
    nats: float

    @property
    def perplexity(self) -> float:
        """exp of the mean loss per token."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """The figure that compares models with different vocabularies."""
        return self.nats / math.log(2) / self.bytes


def token_losses(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """-ln softmax(logits)[target] per row, [T, V] and [T] -> [T], in float64."""
    rows = logits.astype(np.float64)
    top = rows.max(axis=1)
    total = np.log(np.exp(rows - top[:, None]).sum(axis=1)) + top
    losses: NDArray[np.float64] = total - rows[np.arange(len(targets)), targets]
    return losses


def perplexity(
    model: Model,
    ids: Sequence[int] | NDArray[np.integer],
    n_bytes: int,
    *,
    first: int = 0,
    chunk: int = 256,
    progress: EvalProgress | None = None,
) -> Perplexity:
    """Reads a text as one stream and adds up the loss of every token. Memory does not grow with it.

    Args:
        model: Any loaded model.
        ids: The tokens of the text, at least one.
        n_bytes: Length of the text in bytes, for `bits_per_byte`.
        first: The token the model is given before the text; 0 begins a document.
        chunk: Tokens per call.
        progress: Called after every chunk with (tokens done, total).

    Raises:
        ValueError: No tokens, or one outside the vocabulary.
    """
    targets = np.asarray(ids, dtype=np.int64)
    if targets.size == 0:
        raise ValueError("perplexity needs at least one token")
    inputs = np.concatenate([[first], targets[:-1]])
    state = model.new_state()
    nats = 0.0
    for begin in range(0, len(targets), chunk):
        part = slice(begin, begin + chunk)
        logits = model.forward(inputs[part], state, logits="all")
        nats += float(token_losses(logits, targets[part]).sum())
        if progress is not None:
            progress(min(begin + chunk, len(targets)), len(targets))
    return Perplexity(tokens=len(targets), bytes=n_bytes, nats=nats)


def bits_per_byte(results: Iterable[Perplexity]) -> float:
    """Of several texts together."""
    parts = list(results)
    return sum(p.nats for p in parts) / math.log(2) / sum(p.bytes for p in parts)
