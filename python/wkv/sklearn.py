"""Embeddings as a step of a scikit-learn pipeline (needs scikit-learn).

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

classifier = make_pipeline(Embedder(model), LogisticRegression())
classifier.fit(texts, labels)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from .embedding import HIDDEN, Stats, part_names
from .model import Model

__all__ = ["Embedder"]


class Embedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Texts to vectors, each channel normalised over the texts of ``fit``.

    Attributes:
        stats_: :class:`wkv.embedding.Stats` of the training texts.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any = None,
        parts: str | Sequence[str] = HIDDEN,
        batch_size: int = 16,
    ) -> None:
        """Keeps its arguments, which are those of :meth:`wkv.Model.embed`."""
        self.model = model
        self.tokenizer = tokenizer
        self.parts = parts
        self.batch_size = batch_size

    def __sklearn_clone__(self) -> Embedder:
        # The default deep-copies parameters, and a model is not copied.
        return Embedder(self.model, self.tokenizer, self.parts, self.batch_size)

    def _raw(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.model.embed(list(texts), self.tokenizer, self.parts, batch_size=self.batch_size)

    def _learn(self, vectors: NDArray[np.float32]) -> None:
        wide = vectors.astype(np.float64)
        self.stats_ = Stats(
            part_names(self.model, self.parts), len(wide), wide.mean(axis=0), wide.std(axis=0)
        )

    def fit(self, X: Sequence[str], y: object = None) -> Embedder:
        """Collects the statistics."""
        self._learn(self._raw(X))
        return self

    def transform(self, X: Sequence[str]) -> NDArray[np.float32]:
        """Normalised vectors, float32 ``[n, d]``.

        Raises:
            NotFittedError: Before :meth:`fit`.
        """
        check_is_fitted(self, "stats_")
        return self.stats_.normalize(self._raw(X))

    def fit_transform(self, X: Sequence[str], y: object = None, **_: object) -> NDArray[np.float32]:
        """Both, reading the texts once."""
        vectors = self._raw(X)
        self._learn(vectors)
        return self.stats_.normalize(vectors)
