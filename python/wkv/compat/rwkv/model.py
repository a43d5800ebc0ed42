"""``rwkv.model``: the class :class:`RWKV`, for every version."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np

from wkv import _core
from wkv.errors import UnsupportedError
from wkv.info import inspect
from wkv.model import Model
from wkv.state import State

from .arrays import as_state_array, dtype_of, from_numpy, to_numpy
from .strategy import Layer, place, plan, warn
from .weights import Weights

__all__ = ["RWKV", "RWKV_x070"]


class RWKV:
    """A model with the interface of ``rwkv.model.RWKV`` 0.8.32.

    Differences, all described in docs/compat.md: one class serves every version and reads no
    environment variables; logits are float32 always; nothing is printed.

    Attributes:
        args: ``MODEL_NAME, strategy_string, n_layer, n_embd, n_att, n_ffn, n_head, head_size,
            vocab_size, time_state``.
        version: 4, 5, 5.1, 5.2, 6.0 or 7.0.
        strategy: The parsed strategy, ``n_layer + 1`` layers with ``device, atype, wtype, stream``.
        model: The :class:`wkv.Model` behind it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        strategy: str,
        verbose: bool = True,
        convert_and_save_and_exit: str | None = None,
    ) -> None:
        """Loads a model.

        Args:
            model: The path, with or without ``.pth``.
            strategy: See :mod:`wkv.compat.rwkv.strategy`. A warning says what is placed
                otherwise than asked.
            verbose: Accepted; nothing is printed.
            convert_and_save_and_exit: Write the model to this file too, in the type of the
                strategy's first layer. Such a file is a safetensors checkpoint for wkv, whatever
                its suffix; the ``rwkv`` package cannot read it. The process goes on.

        Raises:
            ValueError: The strategy is malformed.
            UnsupportedError: A device we do not run on; a model of v1 to v3, or with a history.
            FileNotFoundError: No such file.
            ModelFormatError: No RWKV checkpoint.
        """
        path = os.fspath(model).strip()
        stages = [stage.strip() for stage in strategy.split("->")]
        info = inspect(path)
        if info.version[0] in "123" or info.context_limit is not None:
            raise UnsupportedError(
                f"[compat] {path} is an RWKV-{info.version} whose state is no list of the rwkv "
                "package's kind; use wkv.Model"
            )
        layers = plan(strategy, info.n_layer)
        placement = place(strategy, layers)
        warn(strategy, placement)
        if convert_and_save_and_exit is not None:
            _convert(path, os.fspath(convert_and_save_and_exit), layers[0])
        self.model = Model.load(path, device=placement.device, dtype=placement.dtype)
        self.version: float = float(info.version.rstrip("abc"))
        if self.version in (4.0, 5.0):
            self.version = int(self.version)
        self.strategy = [_namespace(layer) for layer in layers]
        self.n_layer = info.n_layer
        self.n_embd = info.n_embd
        self.n_head = info.n_head
        self.head_size = info.head_size
        self.RESCALE_LAYER = 0
        state = self.model.new_state()
        self._names = state.keys()
        shapes = [state.shape(name) for name in self._names]
        # The entry that holds sums over time stays float32; the shifted rows have the type of
        # their layer's activations.
        self._dtypes = [
            self._type_of(name) if name.endswith(".shift") else dtype_of("float32")
            for name in self._names
        ]
        self._shapes = shapes
        # Up to v6 the package appends the suffix.
        suffix = ".pth" if self.version < 7 and os.path.exists(f"{path}.pth") else ""
        self.args = SimpleNamespace(
            MODEL_NAME=path + suffix,
            strategy_string=" -> ".join(stages),
            n_embd=info.n_embd,
            n_att=info.n_head * info.head_size or state.shape(_last(self._names, ".aa"))[0],
            n_ffn=info.dim_ffn,
            n_layer=info.n_layer,
            n_head=info.n_head,
            head_size=info.head_size,
            vocab_size=info.n_vocab,
            time_state=any(state[n].any() for n in self._names if n.endswith(".wkv")),
        )

    def __getattr__(self, name: str) -> Any:
        # As upstream, the weights are `w` up to v6 and `z` in v7, and hasattr() tells which.
        if name == ("z" if self.__dict__.get("version", 0) >= 7 else "w"):
            return self._weights
        raise AttributeError(f"'{type(self).__name__}' object has no attribute {name!r}")

    @cached_property
    def _weights(self) -> Weights:
        return Weights(self.args.MODEL_NAME, self.version, self.n_head, self._type_of)

    def _type_of(self, name: str) -> Any:
        """Of the activations beside the tensor or part of this name."""
        first, *rest = name.split(".")
        if first in ("ln_out", "head"):
            return self.strategy[self.n_layer].atype
        return self.strategy[int(rest[0]) if first == "blocks" else 0].atype

    def generate_zero_state(self) -> list[Any]:
        """The state before the first token: what ``forward`` takes for ``None``."""
        return self._export(self.model.new_state())

    def forward(
        self, tokens: Any, state: list[Any] | None = None, full_output: bool = False
    ) -> tuple[Any, list[Any]]:
        """Reads tokens.

        Args:
            tokens: A list of ids, an array, or one id.
            state: The list that the last call returned; ``None``: from the beginning. Its arrays
                are never written to. As upstream, v4 to v6 put the new ones into this very list,
                v7 returns another.
            full_output: Return a row for each token; as upstream, one token gives ``[V]``.

        Returns:
            Logits, float32, ``[V]`` or ``[T, V]``, and the state. Torch tensors if torch is
            installed.

        Raises:
            IndexError: No tokens, or one outside the vocabulary.
            ValueError: The list is no state of this model.
        """
        ids = _ids(tokens)
        if not ids:
            raise IndexError("[compat] forward needs at least one token")
        vocab = self.args.vocab_size
        for token in ids:
            if not -vocab <= token < vocab:
                raise IndexError(f"[compat] token {token} is outside the vocabulary of {vocab}")
        ids = [token if token >= 0 else token + vocab for token in ids]
        native = self.model.new_state()
        if state is not None:
            self._import(state, native)
        every = full_output and len(ids) > 1
        logits = self.model.forward(ids, native, logits="all" if every else "last")
        new = self._export(native)
        # The package's v7 class is compiled by TorchScript, which copies the list it is given.
        if state is not None and self.version < 7:
            state[:] = new
            new = state
        return from_numpy(logits), new

    __call__ = forward

    def forward_one(self, idx: int, state: list[Any] | None = None) -> tuple[Any, list[Any]]:
        """``forward`` of one token."""
        return self.forward([idx], state)

    def forward_seq(
        self, idx: list[int], state: list[Any] | None = None, full_output: bool = False
    ) -> tuple[Any, list[Any]]:
        """``forward`` of a list."""
        return self.forward(idx, state, full_output)

    def forward_one_alt(self, x: Any, state: list[Any]) -> tuple[Any, list[Any]]:
        """``forward`` of one row of ``z["emb.weight"]``; the state that is given stays as it is.

        Raises:
            UnsupportedError: A model that needs the token's id too (DeepEmbed).
        """
        native = self.model.new_state()
        self._import(state, native)
        logits = self.model.forward_vectors(to_numpy(x).reshape(1, -1), native, ln0=False)
        return from_numpy(logits), self._export(native)

    def eval(self) -> RWKV:
        """Does nothing: for programs that treat the model as a torch module."""
        return self

    def _export(self, native: State) -> list[Any]:
        return [
            as_state_array(values, dtype)
            for values, dtype in zip(native._bound().arrays(), self._dtypes, strict=True)
        ]

    def _import(self, state: list[Any], native: State) -> None:
        if len(state) != len(self._names):
            raise ValueError(
                f"[compat] the state has {len(state)} entries, one of this model has "
                f"{len(self._names)}: it belongs to a model of another size or version"
            )
        arrays = [to_numpy(entry) for entry in state]
        for i, (array, shape) in enumerate(zip(arrays, self._shapes, strict=True)):
            if array.size != int(np.prod(shape)):
                raise ValueError(
                    f"[compat] entry {i} of the state ('{self._names[i]}') has shape "
                    f"{array.shape}, want {shape}"
                )
        native._bound().set_arrays(arrays)


#: The package's class for v7, which it selects by RWKV_V7_ON. Here both are one.
RWKV_x070 = RWKV


def _last(names: list[str], suffix: str) -> str:
    return [name for name in names if name.endswith(suffix)][-1]


def _convert(path: str, output: str, first: Layer) -> None:
    output = output if output.endswith(".pth") else f"{output}.pth"
    names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    _core.convert(path, output, names[first.atype], None)
    warnings.warn(
        f"[compat] {output} is a safetensors checkpoint for wkv, which needs no conversion; "
        "the rwkv package cannot read it",
        UserWarning,
        stacklevel=3,
    )


def _namespace(layer: Layer) -> SimpleNamespace:
    return SimpleNamespace(
        device=layer.device,
        atype=dtype_of(layer.atype),
        wtype=dtype_of(layer.wtype),
        stream=layer.stream,
    )


def _ids(tokens: Any) -> list[int]:
    if isinstance(tokens, list):
        return tokens
    tolist = getattr(tokens, "tolist", None)
    if tolist is not None:
        tokens = tolist()
    if isinstance(tokens, Iterable):
        return list(tokens)
    return [int(tokens)]
