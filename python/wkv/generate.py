"""Text from a model, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .arguments import integer, text
from .sampling import Sampler, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .progress import Progress
    from .tokenizer import Tokenizer

__all__ = ["Generation", "generate"]

Reason = Literal["stop", "eos", "length", "closed"]

# Tokens that the `rwkv` package's penalties do not count: those whose text is part of this.
_DIGITS = " \t0123456789"


class _Model(Protocol):
    def new_state(self) -> Any: ...
    def forward(self, ids: Any, state: Any) -> NDArray[np.float32]: ...


def _check_vocabulary(model: _Model, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    """A tokenizer of another model is the likeliest mistake; forward() would only name the id."""
    info = getattr(model, "info", None)
    if info is not None and ids and max(ids) >= info.n_vocab:
        raise ValueError(
            f"[generate] {tokenizer!r} is not this model's: the prompt has id {max(ids)}, the "
            f"model {info.n_vocab} ids (256: Tokenizer.bytes(), --tokenizer bytes)"
        )


def generate(
    model: _Model,
    tokenizer: Tokenizer,
    prompt: str | bytes | Iterable[int],
    max_tokens: int | None = 200,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
    state: Any = None,
    token_stop: Iterable[int] | None = None,
    progress: Progress = None,
    *,
    logits: NDArray[np.float32] | None = None,
    on_logits: Callable[[NDArray[np.float32], Sequence[int]], object] | None = None,
) -> Generation:
    """Continues a text.

        for piece in wkv.generate(model, tokenizer, "Once upon a time", max_tokens=100):
            print(piece, end="", flush=True)

    Nothing runs before the first piece is asked for.

    Args:
        model: A :class:`wkv.Model`.
        tokenizer: A :class:`wkv.Tokenizer`.
        prompt: Text, or token ids.
        max_tokens: Most tokens to draw; None: no bound.
        sampling: How to draw. Default: ``Sampling(top_p=0.85)``.
        stop: The text ends before any of these strings, also where one reaches across tokens.
        state: Goes on from here, and is advanced in place. Default: a new one.
        token_stop: Ids that end the text; they are not part of it. Default: the tokenizer's
            ``eos_id``, 0 in the World. An empty list: none.
        progress: For reading the prompt; as for :meth:`wkv.Model.forward`.
        logits: What the model says after ``state``, such as :attr:`Generation.logits` of the text
            before; with it the prompt may be empty.
        on_logits: Called with a copy of the logits ``[V]``, which it may change in place, and the
            tokens so far, before each draw.

    Returns:
        An iterator over pieces of text, with attributes that say how it went.

    Raises:
        ValueError: An empty prompt, stop string, or a parameter out of range.
        TypeError: A parameter of another type.
    """
    return Generation(
        model,
        tokenizer,
        prompt,
        max_tokens=max_tokens,
        sampling=Sampling(top_p=0.85) if sampling is None else sampling,
        stop=stop,
        state=state,
        token_stop=token_stop,
        progress=progress,
        logits=logits,
        on_logits=on_logits,
    )


@dataclass(frozen=True)
class _Border:
    """A place between two tokens to which the text can be cut."""

    tokens: int  # how many come before
    length: int  # of the text before, in characters
    state: Any  # that has read so far
    logits: NDArray[np.float32]  # that it gave


class Generation(Iterator[str]):
    """A text that is being generated: an iterator over its pieces. Made by :func:`generate`.

    A piece never ends within a character, and text that may turn out to begin a stop string is
    held back until that is settled.

    After the end, and whenever :attr:`state` is asked for, the state has read exactly the prompt
    and :attr:`tokens`; after the end, these are the tokens of the text that the pieces made up. A
    stop string and the token that ended the text were not read: the state from before the stop
    string is put back. (Where the text ends within a token, that token is replaced by the ids of
    its part of the text.) So the next prompt simply begins where the text ended:

        answer = wkv.generate(model, tokenizer, "User: Hi!\\n\\nAssistant:", stop="\\n\\nUser:")
        text = "".join(answer)
        prompt = "\\n\\nUser: Why?\\n\\nAssistant:"
        more = wkv.generate(model, tokenizer, prompt, state=answer.state)

    Leaving the loop early is fine. :meth:`close`, the end of a ``with`` block or :attr:`state` then
    let the model read the last token, which it had not needed yet.

    Attributes:
        tokens: The ids of the text so far.
        text: The text so far, all pieces together.
        reason: Why it ended: ``"stop"``, ``"eos"``, ``"length"``, ``"closed"``; None before that.
        sampler: The :class:`wkv.Sampler` at work.
    """

    def __init__(
        self,
        model: _Model,
        tokenizer: Tokenizer,
        prompt: str | bytes | Iterable[int],
        *,
        max_tokens: int | None,
        sampling: Sampling,
        stop: str | Sequence[str],
        state: Any,
        token_stop: Iterable[int] | None,
        progress: Progress,
        logits: NDArray[np.float32] | None,
        on_logits: Callable[[NDArray[np.float32], Sequence[int]], object] | None,
    ) -> None:
        if isinstance(prompt, (str, bytes)):
            unread = tokenizer.encode(prompt)
            _check_vocabulary(model, tokenizer, unread)
        else:
            unread = [integer("generate", "a token", token) for token in prompt]
        if not unread and logits is None:
            raise ValueError(
                "[generate] the prompt is empty: give text, token ids, or the logits to go on from "
                "(to begin with nothing, give [0], the end of the text before)"
            )
        info = getattr(model, "info", None)
        if logits is not None and info is not None and logits.shape != (info.n_vocab,):
            raise ValueError(
                f"[generate] logits have shape {logits.shape}, the model's are ({info.n_vocab},)"
            )
        if max_tokens is not None and integer("generate", "max_tokens", max_tokens) < 0:
            raise ValueError(f"[generate] max_tokens must not be negative, got {max_tokens}")
        if not isinstance(sampling, Sampling):
            raise TypeError(f"[generate] sampling must be a wkv.Sampling, got {sampling!r}")
        self._stops = [stop] if isinstance(stop, str) else list(stop)
        for one in self._stops:
            if not text("generate", "a stop string", one):
                raise ValueError("[generate] a stop string is empty")
        if token_stop is None:
            end = tokenizer.eos_id
            token_stop = [] if end is None else [end]

        self.tokens: list[int] = []
        self.text = ""
        self.reason: Reason | None = None
        self.sampler = Sampler(sampling)
        self._model = model
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._token_stop = frozenset(
            integer("generate", "a token of token_stop", token) for token in token_stop
        )
        self._progress = progress
        self._on_logits = on_logits
        self._state = model.new_state() if state is None else state
        self._logits = logits
        self._unread = unread  # what the state has yet to read
        self._stream = tokenizer.stream()
        self._held = ""  # text that may begin a stop string
        self._borders: list[_Border] = []  # where the text may yet be cut, oldest first
        self._weights: dict[int, float] = {}

    def __next__(self) -> str:
        while self.reason is None:
            piece = self._advance()
            self.text += piece
            if piece:
                return piece
        self._read()
        raise StopIteration

    @property
    def state(self) -> Any:
        """The state: it has read the prompt and :attr:`tokens`. The one that was given, if any."""
        self._read()
        return self._state

    @property
    def logits(self) -> NDArray[np.float32]:
        """What the model says after :attr:`state`, float32 ``[V]``."""
        return self._read()

    def close(self) -> None:
        """Ends the text here, unless it has ended. Text that was held back is not shown any more,
        though its tokens were read."""
        if self.reason is None:
            self._read()
            self.reason = "closed"

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self.reason is None:
            self.reason = "closed"

    def __repr__(self) -> str:
        return f"<wkv.Generation of {len(self.tokens)} tokens, reason={self.reason!r}>"

    def _read(self) -> NDArray[np.float32]:
        """Lets the state read what it has yet to; returns the logits. If that is interrupted, the
        state is as before, and calling again goes on."""
        if self._unread:
            if self._progress is None:
                self._logits = self._model.forward(self._unread, self._state)
            else:
                forward: Any = self._model.forward
                self._logits = forward(self._unread, self._state, progress=self._progress)
                self._progress = None
            self._unread = []
        assert self._logits is not None
        return self._logits

    def _advance(self) -> str:
        """Draws a token. Returns the text that is certain now."""
        if self._max_tokens == 0:
            return self._end("length")
        logits = self._read()
        if self._on_logits is not None:
            logits = logits.copy()
            self._on_logits(logits, self.tokens)
        token = self.sampler.sample(logits)
        if token in self._token_stop:
            return self._end("eos")
        self.sampler.accept(token, self._weight(token))

        # The border before this token, to which the state belongs until it reads the token.
        here = _Border(len(self.tokens), len(self.text) + len(self._held), self._state, logits)
        clean = not self._stream.pending
        self.tokens.append(token)
        self._unread = [token]
        text = self._held + self._stream.push(token)
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            return self._cut(text[:found], [*self._borders, here] if clean else self._borders)
        certain = len(text) - self._doubtful(text)
        piece, self._held = text[:certain], text[certain:]
        if self._stops:
            self._remember(here if clean else None, len(self.text) + certain)
        if len(self.tokens) == self._max_tokens:
            return piece + self._end("length")
        return piece

    def _weight(self, token: int) -> float:
        """How much a token counts towards the frequency penalty."""
        sampling = self.sampler.sampling
        if not sampling.digits_rule or sampling.frequency_penalty == 0:
            return 1.0
        if token not in self._weights:
            self._weights[token] = float(self._tokenizer.decode([token]) not in _DIGITS)
        return self._weights[token]

    def _doubtful(self, text: str) -> int:
        """The length of the longest end of the text that begins a stop string."""
        longest = min(len(text), max(map(len, self._stops), default=0))
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

    def _remember(self, here: _Border | None, shown: int) -> None:
        """Keeps the borders that a stop string yet to be completed may need. What was shown stays,
        so the last border before its end is the earliest of use."""
        if not self._held and not self._stream.pending:
            self._borders.clear()
            return
        if here is not None:
            # Most tokens leave no doubt, so the state is copied for few.
            self._borders.append(replace(here, state=self._state.copy()))
        while len(self._borders) > 1 and self._borders[1].length <= shown:
            del self._borders[0]

    def _cut(self, piece: str, borders: Sequence[_Border]) -> str:
        """Ends the text with `piece`, before a stop string: goes back to the last border within it,
        and reads the rest from there."""
        text = self.text + piece
        border = next(border for border in reversed(borders) if border.length <= len(text))
        if border.state is not self._state:
            if hasattr(self._state, "assign"):
                self._state.assign(border.state)
            else:
                self._state = border.state
        self._logits = border.logits
        rest = text[border.length :]
        self._unread = self._tokenizer.encode(rest) if rest else []
        self.tokens[border.tokens :] = self._unread
        self._borders.clear()
        self._held = ""
        self.reason = "stop"
        return piece

    def _end(self, reason: Reason) -> str:
        """Ends the text, and returns what was held back."""
        self.reason = reason
        self._borders.clear()
        text, self._held = self._held + self._stream.flush(), ""
        return text
