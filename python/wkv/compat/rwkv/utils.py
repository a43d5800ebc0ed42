"""``rwkv.utils``: the pipeline, with the package's arithmetic to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import torch

__all__ = ["PIPELINE", "PIPELINE_ARGS"]


class PIPELINE_ARGS:  # noqa: N801 - the name is fixed
    """How ``PIPELINE.generate`` samples.

    Attributes:
        temperature: 0 is greedy. Applied after the cutoffs, to the probabilities.
        top_p: Keep the most probable tokens until their sum reaches this.
        top_k: Keep at most so many; 0: no limit.
        alpha_frequency: Taken from a token's logit for each time it was used.
        alpha_presence: Taken from the logit of a token that was used.
        alpha_decay: What the counts are multiplied by at each token.
        token_ban: Tokens that are never drawn.
        token_stop: Tokens that end the text; they are not part of it.
        chunk_len: Prompt tokens per call of ``forward``.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_p: float = 0.85,
        top_k: int = 0,
        alpha_frequency: float = 0.2,
        alpha_presence: float = 0.2,
        alpha_decay: float = 0.996,
        token_ban: Sequence[int] | None = None,
        token_stop: Sequence[int] | None = None,
        chunk_len: int = 256,
    ) -> None:
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.alpha_frequency = alpha_frequency
        self.alpha_presence = alpha_presence
        self.alpha_decay = alpha_decay
        self.token_ban: Sequence[int] = [] if token_ban is None else token_ban
        self.token_stop: Sequence[int] = [] if token_stop is None else token_stop
        self.chunk_len = chunk_len


class PIPELINE:
    """A model and its tokenizer.

    Attributes:
        model: What was given.
        tokenizer: For the World vocabulary a :class:`~.rwkv_tokenizer.TRIE_TOKENIZER`, else what
            the library in question returns.
    """

    def __init__(self, model: Any, WORD_NAME: str) -> None:
        """Makes the tokenizer.

        Args:
            model: Anything with ``forward(tokens, state) -> (logits, state)``.
            WORD_NAME: ``"rwkv_vocab_v20230424"``, ``"cl100k_base"`` (needs ``tiktoken``) or the
                path of a ``tokenizer.json`` (needs ``tokenizers``).
        """
        self.model = model
        self.tokenizer: Any
        if WORD_NAME == "rwkv_vocab_v20230424":
            from .rwkv_tokenizer import TRIE_TOKENIZER

            self.tokenizer = TRIE_TOKENIZER()
        elif WORD_NAME == "cl100k_base":
            import tiktoken

            self.tokenizer = tiktoken.get_encoding(WORD_NAME)
        else:
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(str(WORD_NAME))

    def refine_context(self, context: str) -> str:
        """Strips every line, drops empty ones and puts a newline in front."""
        lines = [line.strip().strip("\u3000").strip("\r") for line in context.strip().split("\n")]
        return "\n" + "\n".join(line for line in lines if line).strip()

    def encode(self, x: str) -> list[int]:
        """The ids of a text."""
        ids = self.tokenizer.encode(x)
        return list(getattr(ids, "ids", ids))

    def decode(self, x: Sequence[int]) -> str:
        """The text of ids; ``"\\ufffd"`` if it is no valid UTF-8 (World vocabulary)."""
        return str(self.tokenizer.decode(x))

    def sample_logits(
        self, logits: Any, temperature: float = 1.0, top_p: float = 0.85, top_k: int = 0
    ) -> int:
        """Draws a token with numpy's global generator, as the package does on a CPU.

        ``np.random.seed(n)`` before it gives the same tokens from both packages. Softmax at
        temperature 1; tokens below the probability at which the sum reaches ``top_p`` are
        dropped, then all but ``top_k``; then ``p ** (1 / temperature)``.

        Args:
            logits: ``[V]``, a tensor or an array.
            temperature: 0 is greedy.
            top_p: If float32 rounding keeps the sum below it, only the best token stays; that can
                happen with 1.0 and is the package's behaviour.
            top_k: 0: off.
        """
        if temperature == 0:
            temperature, top_p = 1.0, 0
        probs = _softmax(logits)
        top_k = int(top_k)
        if 0 < top_k < len(probs):
            # Which of several equal tokens stay depends on the order of this very sort.
            order = np.argsort(probs)
            descending = probs[order][::-1]
            cutoff = _cutoff(descending, top_p)
            probs[probs < cutoff] = 0
            probs[order[:-top_k]] = 0
        else:
            probs[probs < _cutoff_of(probs, top_p)] = 0
        if temperature != 1.0:
            probs **= 1.0 / temperature
        probs /= np.sum(probs)
        return int(np.random.choice(a=len(probs), p=probs))  # noqa: NPY002 - the same generator

    def generate(
        self,
        ctx: str,
        token_count: int = 100,
        args: PIPELINE_ARGS | None = None,
        callback: Callable[[str], object] | None = None,
        state: Any = None,
    ) -> str:
        """Continues a text.

        Args:
            ctx: The prompt.
            token_count: Most tokens to draw.
            args: How to sample.
            callback: Gets each piece of text as soon as it is valid UTF-8.
            state: Where to go on from. Updated in place if it is a list; the last token drawn has
                not been read by it, as in the package.

        Returns:
            The text; an incomplete character at its end is dropped.
        """
        args = PIPELINE_ARGS() if args is None else args
        counts: dict[int, float] = {}
        pending: list[int] = []  # drawn, but no valid UTF-8 yet
        text = ""
        tokens = self.encode(ctx)
        if not tokens:
            raise ValueError("[compat] generate needs a prompt of at least one token")
        out: Any = None
        for _ in range(token_count):
            for start in range(0, len(tokens), args.chunk_len):
                out, state = self.model.forward(tokens[start : start + args.chunk_len], state)
            for banned in args.token_ban:
                out[banned] = -float("inf")
            _penalise(out, counts, args)
            token = self.sample_logits(
                out, temperature=args.temperature, top_p=args.top_p, top_k=args.top_k
            )
            if token in args.token_stop:
                break
            for seen in counts:
                counts[seen] *= args.alpha_decay
            weight = 0 if self.decode([token]) in " \t0123456789" else 1
            counts[token] = counts.get(token, 0) + weight
            pending.append(token)
            piece = self.decode(pending)
            if "\ufffd" not in piece:
                if callback:
                    callback(piece)
                text += piece
                pending = []
            tokens = [token]
        return text


def _softmax(logits: Any) -> NDArray[np.float32]:
    """Probabilities, float32, in memory of their own."""
    if torch is not None:
        # The package's own function: another order of summation changes last bits.
        tensor = logits if isinstance(logits, torch.Tensor) else torch.from_numpy(logits)
        probs = torch.nn.functional.softmax(tensor.float(), dim=-1)
        result: NDArray[np.float32] = probs.cpu().numpy()
        return result
    x = np.asarray(logits, dtype=np.float32)
    e = np.exp(x - np.max(x))
    return np.asarray(e / np.sum(e), dtype=np.float32)


def _cutoff(descending: NDArray[np.float32], top_p: float) -> float:
    """The probability at which the float32 running sum reaches ``top_p``; the first if it never
    does (argmax of all-false is 0)."""
    return float(descending[np.argmax(np.cumsum(descending) >= top_p)])


def _cutoff_of(probs: NDArray[np.float32], top_p: float, first: int = 1024) -> float:
    """``_cutoff`` of unsorted probabilities. The running sum only needs the largest few: sorting
    1024 of 65536 takes a tenth of the time of sorting all."""
    if len(probs) > 2 * first:
        largest = np.sort(np.partition(probs, len(probs) - first)[-first:])[::-1]
        sums = np.cumsum(largest)
        if sums[-1] >= top_p:
            return float(largest[np.argmax(sums >= top_p)])
    return _cutoff(np.sort(probs)[::-1], top_p)


def _penalise(out: Any, counts: dict[int, float], args: PIPELINE_ARGS) -> None:
    """``out[n] -= alpha_presence + counts[n] * alpha_frequency``, rounded once to float32."""
    if not counts:
        return
    ids = np.fromiter(counts, dtype=np.int64, count=len(counts))
    amounts = np.array(
        [args.alpha_presence + count * args.alpha_frequency for count in counts.values()]
    ).astype(np.float32)
    if torch is not None and isinstance(out, torch.Tensor):
        out[torch.from_numpy(ids)] -= torch.from_numpy(amounts).to(out.device)
    else:
        out[ids] -= amounts
