"""A loaded model."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from . import _core
from .arguments import file_path, text, thread_count
from .dtypes import DTypeName, DTypePlan, plan_text
from .info import ModelInfo
from .progress import Progress, reporter
from .state import State, split_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["DTypeName", "MatmulPrecision", "Model", "TokenIds"]

#: How far products of many rows may fall below fp32: see :meth:`Model.load`.
MatmulPrecision: TypeAlias = Literal["auto", "exact", "fast", "w8a8"]
#: A list or tuple of ints, an integer array of one dimension (numpy, torch), or an iterable.
TokenIds: TypeAlias = "Iterable[int] | ArrayLike"

_WANT = {"none": 0, "last": 1, "all": 2}


def _want(logits: str) -> int:
    try:
        return _WANT[logits]
    except (KeyError, TypeError):
        raise ValueError(
            f"[forward] logits must be 'last', 'all' or 'none', got {logits!r}"
        ) from None


def _check_state(place: str, state: object) -> None:
    if not isinstance(state, State):
        raise TypeError(
            f"[{place}] a state must be a wkv.State such as model.new_state(), got {state!r}"
        )


class Model:
    """An RWKV model on one device.

    Thread-safe: calls from several threads are run one after another, without the GIL. Ctrl-C ends
    a long call with ``KeyboardInterrupt`` and leaves the model and the state as they were.
    """

    __slots__ = ("_info", "_initial", "_lock", "_native")

    _info: ModelInfo
    _initial: _core.State | None  # what new_state() copies, if not the checkpoint's
    _lock: threading.Lock  # of _initial: a state is copied by one thread at a time
    _native: _core.Model

    def __init__(self, *_: object) -> None:
        raise TypeError("models come from Model.load(path)")

    @classmethod
    def _wrap(cls, native: _core.Model) -> Model:
        self = object.__new__(cls)
        self._native = native
        self._initial = None
        self._lock = threading.Lock()
        self._info = ModelInfo(**native.info)
        return self

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str = "auto",
        dtype: DTypePlan = "auto",
        threads: int | None = None,
        progress: Progress = None,
        *,
        lora: str | os.PathLike[str] | None = None,
        lora_alpha: float | None = None,
        version: str | None = None,
        skip_zeros: bool | None = None,
        matmul_precision: MatmulPrecision = "auto",
    ) -> Model:
        """Opens a checkpoint. Its version and sizes are found from its tensors.

        Args:
            path: A ``.pth`` or ``.safetensors`` file; the suffix may be left out; or the folder of
                a Hugging Face repository. It is mapped, and on a CPU weights of the chosen dtype
                are used in place. Nothing in it is executed.
            device: ``"auto"`` is the first usable GPU, and the CPU where there is none, or the
                model does not fit or run there (:attr:`device` tells); ``"cpu"``, ``"cuda"``,
                ``"cuda:1"``; or the layers over several, ``"cuda *20 -> cuda:1 int8 *8 -> cpu"``.
                A stage is ``DEVICE [DTYPE] [*LAYERS] [stream]``. The output layer counts as one; a
                stage without a number takes what is left; ``stream`` leaves matrices in host memory
                and copies them to the device at every use.
            dtype: Of the weights: ``"auto"`` keeps the stored types; ``"fp32"``, ``"fp16"``,
                ``"bf16"``, ``"int8"``, ``"int4"``, ``"mm8"``. Or a plan by the names of tensors:
                ``{"default": "int4", "blocks.0.*": "int8"}``, see :data:`wkv.dtypes.DTypePlan`.
            threads: CPU threads, the caller's included. Default: the physical cores that this
                process may use.
            progress: ``True`` for a bar, or a callable that gets ``(done, total)`` bytes.
            lora: A file of ``lora_A`` and ``lora_B`` (RWKV-LM-LoRA, RWKV-PEFT, peft), merged into
                the matrices that it names: ``W + lora_alpha / rank * B A``.
            lora_alpha: What the adapter was trained with; its file does not tell.
            version: ``"6.0c"`` for a file whose names and shapes cannot be told from 6.0b's.
            skip_zeros: Whether the weights of channel-mix hidden units that are zero are left
                unread when few tokens are computed at once (CPU). The result is the same within
                the order of sums. ``None``: in quantised models; ``True``: with float weights
                too, whose ``ffn.value`` matrices are then copied.
            matmul_precision: What the products of prefill and of large batches (16 rows and more)
                may do on a CPU that has faster units than those of fp32. ``"exact"`` stays near
                1e-5; ``"fast"`` rounds activations to bf16 (AMX, AVX512-BF16 of AMD), with 8-bit
                weights to 16 bits (AMX, AVX-512; AVX2, there with int4 too); ``"w8a8"`` multiplies
                8-bit weights with activations of 8 bits (AMX, AVX-512; on AVX2 as ``"fast"``), at
                an error near 1 % of each product. ``"auto"`` is fp32
                for fp32 weights, ``"exact"`` for mm8 and small matrices, ``"fast"`` for fp16,
                bf16, int8 and int4. What has no faster unit, and decoding of less than 16
                streams, is in fp32 or as ``"exact"``.

        Raises:
            FileNotFoundError: No such file.
            ModelFormatError: No RWKV checkpoint, or an adapter of another model; the message lists
                every wrong tensor.
            UnsupportedError: The device or the dtype is not available here; the message says why.
            ValueError: A type that does not exist, a pattern that matches no matrix, a LoRA without
                its alpha, or a version that the tensors are not of.
            MemoryError: It does not fit.
        """
        file = _core.Checkpoint.open(file_path("load", path))
        if version is not None:
            file = file.with_version(text("load", "version", version))
        if (lora is None) != (lora_alpha is None):
            raise ValueError("[load] lora and lora_alpha go together: the file tells no alpha")
        if lora is not None and lora_alpha is not None:
            file = file.with_lora(_core.Checkpoint.open(file_path("load", lora)), lora_alpha)
        with reporter(progress, "loading", "B") as callback:
            native = _core.Model.load(
                file,
                text("load", "device", device),
                plan_text(dtype),
                thread_count("load", threads),
                skip_zeros,
                matmul_precision,
                callback,
            )
        return cls._wrap(native)

    @classmethod
    def synthetic(
        cls,
        spec: str,
        device: str = "auto",
        dtype: DTypePlan = "auto",
        threads: int | None = None,
        progress: Progress = None,
        *,
        skip_zeros: bool | None = None,
        stored: DTypeName = "bf16",
        seed: int = 1,
        matmul_precision: MatmulPrecision = "auto",
    ) -> Model:
        """A model with random weights, for benchmarks and tests.

        Args:
            spec: ``"v7:24x2048"`` or ``"v7:24x2048:65536"``: version, layers, channels, vocabulary.
            device: As for :meth:`load`; so are ``dtype``, ``threads``, ``progress`` and
                ``skip_zeros``.
            dtype: See ``device``.
            threads: See ``device``.
            progress: See ``device``.
            skip_zeros: See ``device``.
            stored: The type the weights are made in, as if a file held them.
            seed: Equal seeds give equal weights.
            matmul_precision: See ``device``.
        """
        with reporter(progress, "loading", "B") as callback:
            native = _core.Model.load_synthetic(
                spec,
                stored,
                seed,
                text("load", "device", device),
                plan_text(dtype),
                thread_count("load", threads),
                skip_zeros,
                matmul_precision,
                callback,
            )
        return cls._wrap(native)

    @property
    def info(self) -> ModelInfo:
        """Version and sizes."""
        return self._info

    @property
    def device(self) -> str:
        """Where it runs: ``"cpu"``, ``"cuda:0"``, ``"cuda:0 *20 -> cpu *5"``."""
        return self._native.device

    @property
    def backend(self) -> str:
        """What runs it, e.g. ``"cpu avx512, 2 threads"``."""
        return self._native.backend

    @property
    def dtype(self) -> str:
        """Type of the weights of the block matrices."""
        return self._native.dtype

    @property
    def weight_types(self) -> dict[str, str]:
        """The type of every matrix that is multiplied, by the name of its tensor."""
        return self._native.weight_types

    @property
    def weight_bytes_per_token(self) -> int:
        """Bytes of weights that one token of one stream reads."""
        return self._native.weight_bytes_per_token

    def new_state(self, record: bool = False) -> State:
        """The state before the first token.

        Args:
            record: Keep the tokens that the state reads, for :attr:`State.tokens` and state files.
        """
        with self._lock:
            native = self._native.new_state() if self._initial is None else self._initial.copy()
        return State._wrap(native, [] if record else None)

    def load_tuned_state(self, path: str | os.PathLike[str]) -> State:
        """The state out of a state-tuning file (``blocks.N.att.time_state``), at position 0.

        Copies of it are where streams begin; see also :meth:`set_initial_state`.

        Args:
            path: A ``.pth`` or ``.safetensors`` file.

        Raises:
            ModelFormatError: The file does not fit the model; the message lists every difference.
            FileNotFoundError: No such file.
        """
        from .tuned_state import load_tuned_state

        return load_tuned_state(self, path)

    def set_initial_state(self, state: State | None) -> None:
        """Makes :meth:`new_state` return copies of ``state``; of the checkpoint's own for None.

        Raises:
            ValueError: The state belongs to another model.
        """
        if state is None:
            self._initial = None
        else:
            _check_state("set_initial_state", state)
            self._initial = self._native.state_from_bytes(state.to_bytes())

    def state_from_bytes(self, data: bytes | bytearray | memoryview) -> State:
        """A state out of :meth:`State.to_bytes`.

        Raises:
            ValueError: The bytes are no state, or one of another model; the message says how.
        """
        return State._wrap(self._native.state_from_bytes(data))

    def load_state(self, path: str | os.PathLike[str]) -> State:
        """A state out of :meth:`State.save`, with its tokens if the file holds them.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file holds no state, or one of another model.
        """
        with open(path, "rb") as file:
            blob, tokens = split_tokens(file.read())
        return State._wrap(self._native.state_from_bytes(blob), tokens)

    def forward(
        self,
        ids: TokenIds,
        state: State,
        logits: Literal["last", "all", "none"] = "last",
        progress: Progress = None,
    ) -> NDArray[np.float32]:
        """Reads tokens and advances ``state`` in place.

        Args:
            ids: T token ids in ``[0, info.n_vocab)``, at least one. Any number of them runs in
                bounded memory.
            state: From :meth:`new_state`, or a copy of one.
            logits: Which rows to return; ``"none"`` saves the output layer.
            progress: ``True`` for a bar, or a callable that gets ``(done, total)`` tokens.

        Returns:
            Logits, float32: ``[V]`` for ``"last"``, ``[T, V]`` for ``"all"``, ``[0]`` for
            ``"none"``.

        Raises:
            ValueError: A bad token, no tokens, a state of another model or one in use.
            TypeError: The ids are no integers.
            ContextLengthError: A v1, v2 or v3 model is full; nothing was consumed.
        """
        want = 1 if logits == "last" else _want(logits)
        _check_state("forward", state)
        native = state._native or state._bind(self._native)
        if state._tokens is not None:
            ids = _listed(ids)
        if progress is None:
            result = self._native.forward(ids, native, want, None)
        else:
            result = self._read(progress, self._native.forward, ids, native, want)
        if state._tokens is not None:
            state._tokens.extend(ids)  # type: ignore[arg-type]
        return result

    def forward_vectors(
        self,
        vectors: ArrayLike,
        state: State,
        logits: Literal["last", "all", "none"] = "last",
        progress: Progress = None,
        *,
        ln0: bool = True,
    ) -> NDArray[np.float32]:
        """Reads vectors in place of tokens: rows of an image, audio or other front end.

        Args:
            vectors: ``[T, C]``, what the embedding table would give.
            state: As for :meth:`forward`, which also describes the rest.
            logits: See ``state``.
            progress: See ``state``.
            ln0: Apply the first norm, as it is applied to embeddings.

        Returns:
            As :meth:`forward`.

        Raises:
            ValueError: Another shape, or as :meth:`forward`; also if the state records tokens.
        """
        _check_state("forward", state)
        if state._tokens is not None:
            raise ValueError("[forward] vectors have no token ids for a state that records them")
        result: NDArray[np.float32] = self._read(
            progress,
            self._native.forward_vectors,
            vectors,
            state._bind(self._native),
            _want(logits),
            ln0,
        )
        return result

    def hidden(
        self,
        ids: Sequence[TokenIds],
        states: Sequence[State],
        layers: Sequence[int] = (-1,),
        rows: Literal["last", "all"] = "last",
        progress: Progress = None,
    ) -> NDArray[np.float32]:
        """Reads tokens of B streams, as :meth:`forward_batch`, and returns hidden states.

        Args:
            ids: Token ids of each stream.
            states: The state of each; advanced in place.
            layers: Which: ``i`` in ``[0, L)`` is the residual stream after block i, L (or -1) what
                the output layer gets, after the last norm.
            rows: Of the last token of each stream, or of every token.
            progress: As for :meth:`forward`.

        Returns:
            float32 ``[len(layers), rows, C]``, the rows of one stream after those of another.

        Raises:
            ValueError: As for :meth:`forward_batch`, or a layer out of range.
        """
        n = self._info.n_layer
        wanted = [layer + n + 1 if layer < 0 else layer for layer in layers]
        for layer, index in zip(layers, wanted, strict=True):
            if not 0 <= index <= n:
                raise ValueError(f"[hidden] layer {layer} is outside [0, {n}]")
        ascending = sorted(set(wanted))
        lists, natives = self._batch("hidden", ids, states)
        result: NDArray[np.float32] = self._read(
            progress, self._native.hidden, lists, natives, ascending, _want(rows)
        )
        self._record(lists, states)
        if ascending == wanted:
            return result
        return result[[ascending.index(index) for index in wanted]]

    @overload
    def forward_batch(
        self,
        ids: Sequence[TokenIds],
        states: Sequence[State],
        logits: Literal["last", "none"] = "last",
        progress: Progress = None,
    ) -> NDArray[np.float32]: ...

    @overload
    def forward_batch(
        self,
        ids: Sequence[TokenIds],
        states: Sequence[State],
        logits: Literal["all"],
        progress: Progress = None,
    ) -> list[NDArray[np.float32]]: ...

    def forward_batch(
        self,
        ids: Sequence[TokenIds],
        states: Sequence[State],
        logits: Literal["last", "all", "none"] = "last",
        progress: Progress = None,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Reads tokens of B streams at once; their numbers may differ, and nothing is padded.

        Args:
            ids: Token ids of each stream, at least one each.
            states: The state of each, all different; advanced in place.
            logits: As for :meth:`forward`.
            progress: As for :meth:`forward`.

        Returns:
            Logits, float32: ``[B, V]`` for ``"last"``, a list of B arrays ``[T_b, V]`` (views of
            one block) for ``"all"``, ``[0, V]`` for ``"none"``.

        Raises:
            ValueError: As for :meth:`forward`; also if the lengths of the arguments differ.
            TypeError: The ids are no integers.
            ContextLengthError: As for :meth:`forward`.
        """
        want = _want(logits)
        lists, natives = self._batch("forward_batch", ids, states, listed=want == 2)
        rows: NDArray[np.float32] = self._read(
            progress, self._native.forward_batch, lists, natives, want
        )
        self._record(lists, states)
        if want != 2:
            return rows
        ends = 0
        result = []
        for one in lists:
            count = len(one)
            result.append(rows[ends : ends + count])
            ends += count
        return result

    def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        tokenizer: Any = None,
        parts: str | Sequence[str] = "hidden",
        stats: Any = None,
        batch_size: int = 16,
        progress: Progress = None,
    ) -> NDArray[np.float32]:
        """Vectors for texts: what the model holds after the last token.

        See :func:`wkv.embedding.embed`, which this calls.
        """
        from .embedding import embed

        return embed(self, texts, tokenizer, parts, stats, batch_size, progress)

    @staticmethod
    def _read(progress: Progress, call: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a native function whose last argument is a callback."""
        if progress is None:
            return call(*arguments, None)
        with reporter(progress, "reading", "token") as callback:
            return call(*arguments, callback)

    def _batch(
        self,
        place: str,
        ids: Sequence[TokenIds],
        states: Sequence[State],
        listed: bool = False,
    ) -> tuple[list[Any], list[_core.State]]:
        """The native arguments of a batch; ids as lists if they are read twice."""
        if len(ids) != len(states):
            raise ValueError(f"[{place}] {len(ids)} lists of tokens, but {len(states)} states")
        for state in states:
            _check_state(place, state)
        listed = listed or any(state._tokens is not None for state in states)
        lists = [_listed(one) for one in ids] if listed else list(ids)
        return lists, [state._bind(self._native) for state in states]

    @staticmethod
    def _record(lists: list[Any], states: Sequence[State]) -> None:
        for one, state in zip(lists, states, strict=True):
            if state._tokens is not None:
                state._tokens.extend(one)

    def __repr__(self) -> str:
        info = self._info
        return (
            f"<wkv.Model v{info.version} {info.n_layer}x{info.n_embd} vocabulary {info.n_vocab}, "
            f"{self.dtype} on {self.backend}>"
        )


def _listed(ids: TokenIds) -> list[int]:
    """Ids as a list of ints, for callers that read them twice."""
    if isinstance(ids, list):
        return ids
    tolist = getattr(ids, "tolist", None)
    found = tolist() if tolist is not None else list(ids)  # type: ignore[arg-type]
    if not isinstance(found, list):
        raise TypeError(f"[forward] token ids must be a sequence of integers, got {ids!r}")
    return found
