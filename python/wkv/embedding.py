"""Texts as vectors: the hidden state, or parts of the memory, after the last token.

Parts are laid side by side, never added or averaged: a channel of one part means something else
than the same channel of another. Channels differ in scale by orders of magnitude, so that distances
need :class:`Stats` - mean and deviation per channel over a corpus - to say anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from .progress import Progress, reporter

if TYPE_CHECKING:
    from .model import Model
    from .state import State

__all__ = ["Stats", "collect_stats", "embed", "part_names"]

#: Of the last norm's output; other parts have the names of ``State.keys()``.
HIDDEN = "hidden"


@dataclass(frozen=True)
class Stats:
    """Mean and standard deviation of each channel of an embedding over a corpus.

    Attributes:
        parts: The parts of the embedding, in order.
        count: Texts they were collected over.
        mean: ``[d]``.
        std: ``[d]``.
    """

    parts: tuple[str, ...]
    count: int
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def normalize(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(x - mean) / std``; channels that never varied become 0. ``[n, d]``, float32."""
        if vectors.shape[1:] != self.mean.shape:
            raise ValueError(
                f"[embed] vectors of {vectors.shape[1]} channels, statistics of {len(self.mean)}"
            )
        # Below float32's resolution of the mean, deviations are rounding.
        still = self.std <= 1e-6 * np.abs(self.mean) + 1e-30
        scale = np.where(still, 0.0, 1.0 / np.where(still, 1.0, self.std))
        return ((vectors - self.mean) * scale).astype(np.float32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a ``.npz`` file, whole or not at all."""
        import io

        from .state import write_atomic

        buffer = io.BytesIO()
        np.savez(
            buffer,
            parts=np.array(json.dumps(self.parts)),
            count=np.array(self.count),
            mean=self.mean,
            std=self.std,
        )
        write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Stats:
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file holds no statistics.
        """
        try:
            # np.load leaves a file open that it cannot read.
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                return cls(
                    tuple(json.loads(str(file["parts"]))),
                    int(file["count"]),
                    file["mean"],
                    file["std"],
                )
        except (KeyError, ValueError, EOFError, TypeError, AttributeError, BadZipFile) as error:
            raise ValueError(f"[stats] {os.fspath(path)} holds no statistics") from error


def part_names(model: Model, parts: str | Sequence[str]) -> tuple[str, ...]:
    """The parts that are meant by names and patterns.

    Args:
        model: Whose.
        parts: ``"hidden"``, names of ``State.keys()``, patterns such as ``"blocks.*.att.shift"``;
            or, for v4, ``"...att.aa/bb"``: the running average of values, which unlike aa and bb
            alone does not depend on the scale that v4 keeps them in.

    Raises:
        ValueError: A pattern that fits nothing, or a v4 part that is only meaningful as aa/bb.
    """
    known = [HIDDEN, *model.new_state().keys()]
    known += [f"{name}/bb" for name in known if name.endswith("att.aa")]
    found: list[str] = []
    for pattern in [parts] if isinstance(parts, str) else parts:
        names = [name for name in known if fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f"[embed] no part '{pattern}'; parts are 'hidden' and {known[1]!r}...")
        for name in names:
            if name.endswith((".att.aa", ".att.bb", ".att.pp")):
                raise ValueError(f"[embed] '{name}' means nothing alone; use 'att.aa/bb'")
        found += [name for name in names if name not in found]
    return tuple(found)


def embed(
    model: Model,
    texts: Sequence[str | Sequence[int]],
    tokenizer: Any = None,
    parts: str | Sequence[str] = HIDDEN,
    stats: Stats | str | os.PathLike[str] | None = None,
    batch_size: int = 16,
    progress: Progress = None,
) -> NDArray[np.float32]:
    """Vectors for texts.

    Args:
        model: Any model.
        texts: Strings, or lists of token ids. An empty one stands for the end-of-text token 0.
        tokenizer: For strings. Default: the World tokenizer.
        parts: See :func:`part_names`.
        stats: Normalise by these, or by a file of them; they bring their own ``parts``.
        batch_size: Texts at once.
        progress: ``True`` for a bar, or a callable that gets ``(done, total)`` texts.

    Returns:
        float32 ``[n, d]``, d the total size of the parts.

    Raises:
        ValueError: An unknown part, or statistics of other parts.
    """
    if isinstance(texts, str):
        raise TypeError("[embed] texts must be a sequence of texts, got one string")
    if stats is not None and not isinstance(stats, Stats):
        stats = Stats.load(stats)
    names = part_names(model, parts if stats is None else stats.parts)
    rows = list(_vectors(model, texts, tokenizer, names, batch_size, progress))
    width = rows[0][1].size if rows else 0
    result = np.empty((len(rows), width), dtype=np.float32)
    for index, vector in rows:
        result[index] = vector
    return result if stats is None else stats.normalize(result)


def collect_stats(
    model: Model,
    texts: Iterable[str | Sequence[int]],
    tokenizer: Any = None,
    parts: str | Sequence[str] = HIDDEN,
    batch_size: int = 16,
    progress: Progress = None,
) -> Stats:
    """Mean and deviation of each channel over a corpus (Welford's method, float64).

    Args:
        model: See :func:`embed`; so are the others.
        texts: At least two.
        tokenizer: See ``model``.
        parts: See ``model``.
        batch_size: See ``model``.
        progress: See ``model``.

    Raises:
        ValueError: Fewer than two texts, or an unknown part.
    """
    names = part_names(model, parts)
    count = 0
    mean: NDArray[np.float64] | float = 0.0
    squares: NDArray[np.float64] | float = 0.0
    for _, vector in _vectors(model, list(texts), tokenizer, names, batch_size, progress):
        count += 1
        delta = vector.astype(np.float64) - mean
        mean = mean + delta / count
        squares = squares + delta * (vector - mean)
    if count < 2:
        raise ValueError(f"[stats] {count} texts are too few: at least 2 are needed")
    return Stats(names, count, np.asarray(mean), np.sqrt(np.asarray(squares) / count))


def _encode(texts: Sequence[str | Sequence[int]], tokenizer: Any) -> list[list[int]]:
    if tokenizer is None and any(isinstance(text, str) for text in texts):
        from .tokenizer import Tokenizer

        tokenizer = Tokenizer.world()
    ids = [list(tokenizer.encode(text) if isinstance(text, str) else text) for text in texts]
    return [one or [0] for one in ids]


def _vectors(
    model: Model,
    texts: Sequence[str | Sequence[int]],
    tokenizer: Any,
    names: Sequence[str],
    batch_size: int,
    progress: Progress,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(index, vector) of each text. Texts of like length share a batch."""
    ids = _encode(texts, tokenizer)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    with reporter(progress, "embedding", "text") as report:
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            states = [model.new_state() for _ in batch]
            lists = [ids[i] for i in batch]
            hidden = None
            if HIDDEN in names:
                hidden = model.hidden(lists, states)[0]
            else:
                model.forward_batch(lists, states, logits="none")
            for row, (index, state) in enumerate(zip(batch, states, strict=True)):
                pieces = [
                    hidden[row] if name == HIDDEN and hidden is not None else _part(state, name)
                    for name in names
                ]
                yield index, np.concatenate([piece.ravel() for piece in pieces])
            if report is not None:
                report(min(first + batch_size, len(order)), len(order))


def _part(state: State, name: str) -> NDArray[np.float32]:
    if not name.endswith("/bb"):
        return state[name]
    name = name.removesuffix("/bb")
    total, weight = state[name], state[name.removesuffix("aa") + "bb"]
    return total / weight
