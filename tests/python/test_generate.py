"""Generation: pieces, stop strings, what the state has read, ends of every kind.

The model is a fake whose state is the list of tokens it has read, so that a test can look at it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import wkv
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from wkv import Generation, Sampling, Tokenizer, generate

GREEDY = Sampling(temperature=0)
PROMPT = "Hello"


class FakeState:
    """The tokens read."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens = list(tokens)

    def copy(self) -> FakeState:
        return FakeState(self.tokens)

    def assign(self, other: FakeState) -> None:
        self.tokens = list(other.tokens)


class StateWithoutAssign:
    """What a model of somebody else may have."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens = list(tokens)

    def copy(self) -> StateWithoutAssign:
        return StateWithoutAssign(self.tokens)


class FakeModel:
    """Says the tokens of a script, one after each token it reads after the prompt."""

    def __init__(self, script: Sequence[int], prompt: Sequence[int], n_vocab: int = 65536) -> None:
        self.script = list(script)
        self.start = len(prompt)
        self.n_vocab = n_vocab
        self.calls: list[list[int]] = []

    def new_state(self) -> FakeState:
        return FakeState()

    def forward(
        self, ids: Sequence[int], state: FakeState, progress: Any = None
    ) -> NDArray[np.float32]:
        assert len(ids) > 0
        self.calls.append(list(ids))
        state.tokens += ids
        logits = np.zeros(self.n_vocab, dtype=np.float32)
        said = len(state.tokens) - self.start
        logits[self.script[said] if said < len(self.script) else 0] = 9.0
        if progress is not None:
            progress(len(ids), len(ids))
        return logits


def run(
    tokenizer: Tokenizer, script: Sequence[int] | str, prompt: str = PROMPT, **arguments: Any
) -> tuple[list[str], Generation, FakeModel]:
    """Generates to the end and checks what holds of every text."""
    ids = tokenizer.encode(script) if isinstance(script, str) else list(script)
    model = FakeModel(ids, tokenizer.encode(prompt), max(tokenizer.vocab_size, 256))
    out = generate(model, tokenizer, prompt, sampling=GREEDY, **arguments)
    pieces = list(out)
    assert "" not in pieces
    assert out.text == "".join(pieces)
    assert out.state.tokens == tokenizer.encode(prompt) + out.tokens
    assert tokenizer.decode(out.tokens) == out.text
    want = model.forward([1], FakeState([*out.state.tokens[:-1]]))
    assert out.logits.shape == want.shape
    return pieces, out, model


@pytest.fixture(scope="module")
def world() -> Tokenizer:
    return Tokenizer.world()


def test_pieces_come_as_they_are_drawn(world: Tokenizer) -> None:
    pieces, out, model = run(world, " big wide world")
    assert pieces == [" big", " wide", " world"]
    assert out.reason == "eos"
    assert model.calls[0] == world.encode(PROMPT)
    assert [len(call) for call in model.calls[1:-1]] == [1, 1, 1]


def test_nothing_runs_before_the_first_piece(world: Tokenizer) -> None:
    model = FakeModel(world.encode(" a b"), world.encode(PROMPT))
    out = generate(model, world, PROMPT, sampling=GREEDY)
    assert model.calls == []
    assert iter(out) is out
    assert next(out) == " a"
    assert len(model.calls) == 1  # " a" is shown before the model reads it
    assert out.tokens == world.encode(" a")
    assert out.reason is None


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_length(world: Tokenizer, max_tokens: int) -> None:
    pieces, out, _ = run(world, " one two three four five", max_tokens=max_tokens)
    assert len(pieces) == len(out.tokens) == max_tokens
    assert out.reason == "length"


def test_the_state_given_is_advanced_in_place(world: Tokenizer) -> None:
    model = FakeModel(world.encode(" a b c d"), world.encode(PROMPT))
    state = FakeState()
    out = generate(model, world, PROMPT, max_tokens=2, sampling=GREEDY, state=state)
    assert "".join(out) == " a b"
    assert out.state is state
    assert state.tokens == world.encode(PROMPT) + out.tokens
    # Going on without a prompt: the logits are those of the text before.
    more = generate(
        model, world, "", max_tokens=2, sampling=GREEDY, state=out.state, logits=out.logits
    )
    assert "".join(more) == " c d"
    assert state.tokens == world.encode(PROMPT + " a b c d")


def test_token_stop(world: Tokenizer) -> None:
    a, b, c = world.encode(" a b c")
    _, out, _ = run(world, [a, 0, b], token_stop=None)
    assert (out.tokens, out.reason) == ([a], "eos")
    _, out, _ = run(world, [a, b, c], token_stop=[c, 5])
    assert (out.tokens, out.reason) == ([a, b], "eos")
    pieces, out, _ = run(world, [a, 0, b, c], token_stop=[], max_tokens=4)
    assert (out.tokens, out.reason) == ([a, 0, b, c], "length")
    assert pieces == [" a", " b", " c"]  # 0 has no text


def test_stop_strings_reach_across_tokens(world: Tokenizer) -> None:
    script = " Fine.\n\nUser: and"
    pieces, out, _ = run(world, script, stop=["\n\nUser:"])
    assert out.text == " Fine."
    assert out.reason == "stop"
    assert "".join(pieces) == " Fine."
    _, out, _ = run(world, script, stop="\n\nUser:")  # one string is a list of one
    assert out.text == " Fine."


def test_what_only_begins_like_a_stop_string_is_shown(world: Tokenizer) -> None:
    _, out, _ = run(world, " a\n\nUse it\n\nUser", stop=["\n\nUser:", "zzz"])
    assert out.text == " a\n\nUse it\n\nUser"
    assert out.reason == "eos"
    _, out, _ = run(world, " aab", stop=["ab"])
    assert out.text == " a"
    assert out.reason == "stop"


def test_the_earliest_stop_string_wins(world: Tokenizer) -> None:
    tokenizer = Tokenizer.bytes()
    assert run(tokenizer, "xxabcdyy", stop=["cd", "abcdx", "bc"])[1].text == "xxa"
    # One that is complete ends the text though a longer one might yet begin before it.
    assert run(tokenizer, "xxabcdyy", stop=["bcdyyz", "cd"])[1].text == "xxab"


def test_a_stop_string_within_a_token(world: Tokenizer) -> None:
    """The token that holds more than the stop string is replaced by the part before it."""
    token = world.encode(" Assistant")
    assert len(token) == 1
    _, out, model = run(world, [*world.encode(" The"), *token, *token], stop=["sist"])
    assert out.text == " The As"
    assert out.tokens == world.encode(" The") + world.encode(" As")
    assert model.calls[-2] == world.encode(" As")  # the last call is the check's own


@pytest.mark.parametrize("state_type", [FakeState, StateWithoutAssign])
def test_a_conversation_goes_on_after_a_stop(
    world: Tokenizer, state_type: type[FakeState] | type[StateWithoutAssign]
) -> None:
    state = state_type()
    text = ""
    for turn, answer in enumerate([" Yes.", " No\n\nnever.", " Well"]):
        prompt = f"{'' if turn == 0 else chr(10) * 2}User: {turn}?\n\nAssistant:"
        said = world.encode(answer + "\n\nUser: I")
        before = list(state.tokens)
        model = FakeModel(said, before + world.encode(prompt))
        out = generate(model, world, prompt, sampling=GREEDY, stop=["\n\nUser:"], state=state)
        assert "".join(out) == answer
        state = out.state
        text += prompt + answer
        assert world.decode(state.tokens) == text
        assert state.tokens == before + world.encode(prompt) + out.tokens
        # The logits are those of the state, not of the stop string.
        again = model.forward([state.tokens[-1]], FakeState(state.tokens[:-1]))
        np.testing.assert_array_equal(out.logits, again)


def test_characters_in_several_tokens(world: Tokenizer) -> None:
    for tokenizer in (world, Tokenizer.bytes()):
        text = " caf\u00e9 \U0001f9ff\u4e2d\u6587!"
        pieces, out, _ = run(tokenizer, text)
        assert out.text == text
        assert not any("\ufffd" in piece for piece in pieces)
        pieces, out, _ = run(tokenizer, text, stop=["\u6587"])
        assert out.text == text[:-2]
    # The end within a character: it cannot be completed.
    emoji = list("\U0001f9ff".encode())
    pieces, out, _ = run(Tokenizer.bytes(), [97, *emoji[:2]], max_tokens=3)
    assert pieces == ["a", "\ufffd"]
    assert out.tokens == [97, *emoji[:2]]


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_any_text_any_stop(data: st.DataObject) -> None:
    """Against the slow definition: the text up to the first moment at which a stop string is
    complete, cut at the earliest."""
    world, byte = Tokenizer.world(), Tokenizer.bytes()
    tokenizer = data.draw(st.sampled_from([world, byte]))
    alphabet = "ab\n\u00e9\u4e2d\U0001f600"
    if tokenizer is byte:
        script = list(data.draw(st.text(alphabet, max_size=12)).encode())
    else:
        pool = [
            *range(1, 257),
            *world.encode("\n\n ab aba \n\u00e9 \u4e2d.\n\nUser Assistant:"),
            *[world.encode(text)[0] for text in (".\n\n", "\n\n\n", "aaaa", "abab", "\u00e9e")],
        ]
        script = data.draw(
            st.lists(st.sampled_from(pool), max_size=12)
            | st.text(alphabet, max_size=12).map(world.encode)
        )
    if tokenizer is byte:
        script = [token for token in script if token != 0]
    stops = data.draw(st.lists(st.text(alphabet, min_size=1, max_size=4), max_size=3))
    max_tokens = data.draw(st.integers(0, 14))

    model = FakeModel(script, tokenizer.encode(PROMPT), max(tokenizer.vocab_size, 256))
    out = generate(model, tokenizer, PROMPT, max_tokens=max_tokens, sampling=GREEDY, stop=stops)
    pieces = list(out)

    want, reason = "", "eos" if len(script) < max_tokens else "length"
    stream = tokenizer.stream()
    for token in script[:max_tokens]:
        want += stream.push(token)
        places = [want.find(stop) for stop in stops if stop in want]
        if places:
            want, reason = want[: min(places)], "stop"
            break
    else:
        want += stream.flush()
    assert "".join(pieces) == out.text == want
    assert out.reason == reason
    assert out.state.tokens == tokenizer.encode(PROMPT) + out.tokens
    if reason == "stop":
        assert tokenizer.decode(out.tokens) == want or "\ufffd" in want
    else:
        assert out.tokens == script[:max_tokens]
    position = len(out.state.tokens)
    again = model.forward(out.state.tokens[position - 1 :], FakeState(out.state.tokens[:-1]))
    np.testing.assert_array_equal(out.logits, again)


def test_only_doubtful_text_copies_the_state(world: Tokenizer) -> None:
    copies = 0

    class Counting(FakeState):
        def copy(self) -> Counting:
            nonlocal copies
            copies += 1
            return Counting(self.tokens)

    model = FakeModel(world.encode(" one two three\n\nfour five" * 5), world.encode(PROMPT))
    out = generate(model, world, PROMPT, sampling=GREEDY, stop=["\n\nUser:"], state=Counting())
    assert "".join(out) == " one two three\n\nfour five" * 5
    assert copies == 5
    assert not out._borders


def test_leaving_early(world: Tokenizer) -> None:
    script = world.encode(" one two three four")
    for leave in ("state", "close", "with"):
        model = FakeModel(script, world.encode(PROMPT))
        state = FakeState()
        out = generate(model, world, PROMPT, sampling=GREEDY, state=state)
        if leave == "with":
            with out:
                next(out)
        else:
            for _ in out:
                break
            if leave == "state":
                assert out.state is state
            else:
                out.close()
        assert state.tokens == world.encode(PROMPT) + out.tokens == world.encode(PROMPT + " one")
        if leave == "state":
            assert next(out) == " two"
        else:
            assert out.reason == "closed"
            assert list(out) == []
    out.close()  # more than once is fine
    assert repr(out) == "<wkv.Generation of 1 tokens, reason='closed'>"


def test_an_error_in_a_with_block_reads_nothing_more(world: Tokenizer) -> None:
    model = FakeModel(world.encode(" a b"), world.encode(PROMPT))
    out = generate(model, world, PROMPT, sampling=GREEDY)
    assert next(out) == " a"
    with pytest.raises(KeyError), out:
        raise KeyError
    assert out.reason == "closed"
    assert len(model.calls) == 1


def test_an_interruption_loses_nothing(world: Tokenizer) -> None:
    class Interrupted(FakeModel):
        fail_at = 2

        def forward(self, ids: Any, state: Any, progress: Any = None) -> NDArray[np.float32]:
            if len(self.calls) == self.fail_at:
                self.fail_at = -1
                raise KeyboardInterrupt
            return super().forward(ids, state, progress)

    model = Interrupted(world.encode(" one two three"), world.encode(PROMPT))
    out = generate(model, world, PROMPT, sampling=GREEDY)
    with pytest.raises(KeyboardInterrupt):
        list(out)
    assert out.text == " one two"
    assert list(out) == [" three"]
    assert out.state.tokens == world.encode(PROMPT + " one two three")


def test_prompts(world: Tokenizer) -> None:
    for prompt in (PROMPT, PROMPT.encode(), world.encode(PROMPT), world.encode_array(PROMPT)):
        model = FakeModel(world.encode(" a"), world.encode(PROMPT))
        assert list(generate(model, world, prompt, sampling=GREEDY)) == [" a"]
        assert model.calls[0] == world.encode(PROMPT)
    nothing: list[str | bytes | list[int]] = ["", b"", []]
    for empty in nothing:
        with pytest.raises(ValueError, match="prompt is empty"):
            generate(model, world, empty)


def test_arguments_out_of_range(world: Tokenizer) -> None:
    model = FakeModel([], [])
    with pytest.raises(ValueError, match="stop string is empty"):
        generate(model, world, "a", stop=["x", ""])
    with pytest.raises(ValueError, match="max_tokens"):
        generate(model, world, "a", max_tokens=-1)


def test_unbounded(world: Tokenizer) -> None:
    script = world.encode(" a") * 500
    _, out, _ = run(world, script, max_tokens=None)
    assert len(out.tokens) == 500
    assert out.reason == "eos"


def test_progress_is_for_the_prompt(world: Tokenizer) -> None:
    seen: list[tuple[int, int]] = []
    model = FakeModel(world.encode(" a b"), world.encode(PROMPT))
    out = generate(
        model,
        world,
        PROMPT,
        sampling=GREEDY,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert "".join(out) == " a b"
    assert seen == [(1, 1)]


def test_on_logits(world: Tokenizer) -> None:
    a, b = world.encode(" a b")
    seen: list[list[int]] = []

    def prefer(logits: NDArray[np.float32], tokens: Sequence[int]) -> None:
        seen.append(list(tokens))
        if len(tokens) == 1:
            logits[b] += 100

    model = FakeModel([a, a, a], world.encode(PROMPT))
    out = generate(model, world, PROMPT, sampling=GREEDY, on_logits=prefer)
    assert "".join(out) == " a b a"
    assert seen == [[], [a], [a, b], [a, b, a]]


def test_penalties_count_as_the_package_does(world: Tokenizer) -> None:
    """The digits rule: blanks and digits get the presence penalty, but are not counted."""
    script = world.encode("1") * 3 + world.encode("x") * 3
    sampling = Sampling(
        temperature=0, presence_penalty=0.25, frequency_penalty=0.5, penalty_decay=1.0
    )
    for rule, count in ((True, 0.25), (False, 1.75)):
        model = FakeModel(script, world.encode(PROMPT))
        changed = Sampling(**{**vars(sampling), "digits_rule": rule})
        out = generate(model, world, PROMPT, sampling=changed)
        assert "".join(out) == "111xxx"
        adjusted = out.sampler.adjust(np.zeros(65536, dtype=np.float32))
        assert adjusted[world.encode("1")[0]] == -count
        assert adjusted[world.encode("x")[0]] == -1.75


def test_seeds(world: Tokenizer) -> None:
    class Uncertain(FakeModel):
        def forward(self, ids: Any, state: Any, progress: Any = None) -> NDArray[np.float32]:
            super().forward(ids, state, progress)
            random = np.random.default_rng(sum(state.tokens))
            return random.normal(0, 1, self.n_vocab).astype(np.float32)

    def text(seed: int | None) -> list[int]:
        sampling = Sampling(seed=seed)
        out = generate(
            Uncertain([], []), world, PROMPT, max_tokens=10, sampling=sampling, token_stop=[]
        )
        list(out)
        return out.tokens

    assert text(3) == text(3)
    assert text(3) != text(4)
    assert text(None) != text(None)


def test_a_tokenizer_that_joins_words(tmp_path: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<pad>", "a", "b", "c"])}
    native = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    native.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path / "words.json"
    native.save(str(path))
    tokenizer = Tokenizer.from_file(path)
    pieces, out, _ = run(tokenizer, [1, 2, 3, 2, 0], prompt="a")
    assert pieces == ["a", " b", " c", " b"]
    _, out, _ = run(tokenizer, [1, 2, 3, 2, 0], prompt="a", stop=[" c"])
    assert out.text == "a b"


def test_a_model_that_runs_out_of_context_keeps_its_text(world: Tokenizer) -> None:
    class Short(FakeModel):
        def forward(self, ids: Any, state: Any, progress: Any = None) -> NDArray[np.float32]:
            if len(state.tokens) + len(ids) > 3:
                raise wkv.ContextLengthError("full")
            return super().forward(ids, state, progress)

    model = Short(world.encode(" a b c d e"), world.encode(PROMPT))
    out = generate(model, world, PROMPT, sampling=GREEDY)
    assert list(itertools.islice(out, 3)) == [" a", " b", " c"]
    with pytest.raises(wkv.ContextLengthError):
        next(out)
    assert out.text == " a b c"


def test_with_a_real_model(world: Tokenizer, model: wkv.Model) -> None:
    """Rolling back puts back the very state: the same as reading prompt and text afresh."""
    tokenizer = Tokenizer.bytes()
    n_vocab = model.info.n_vocab
    sampling = Sampling(seed=3, ban=[token for token in range(n_vocab) if token > 63])
    free = generate(model, tokenizer, [1, 2, 3], 40, sampling, token_stop=[])
    text = "".join(free)
    stop = text[20:24]
    state = model.new_state(record=True)
    out = generate(model, tokenizer, [1, 2, 3], 40, sampling, [stop], state, token_stop=[])
    assert "".join(out) == text[: text.index(stop)]
    assert out.state is state
    assert state.tokens == [1, 2, 3, *out.tokens]
    assert state.position == 3 + len(out.tokens)
    fresh = model.new_state()
    logits = model.forward([1, 2, 3, *out.tokens], fresh)
    np.testing.assert_allclose(out.logits, logits, rtol=1e-4, atol=1e-4)
    for name in fresh.keys():  # noqa: SIM118 - a State is no mapping
        np.testing.assert_allclose(state[name], fresh[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": [1.5]}, "a token must be an integer, got 1.5"),
        ({"prompt": ["a"]}, "a token must be an integer, got 'a'"),
        ({"max_tokens": 1.5}, "max_tokens must be an integer, got 1.5"),  # never reached
        ({"stop": [b"a"]}, "a stop string must be a str, got b'a'"),
        ({"token_stop": [1.5]}, "a token of token_stop must be an integer, got 1.5"),
        ({"sampling": 0.5}, "sampling must be a wkv.Sampling, got 0.5"),
    ],
)
def test_arguments_of_other_types(model: wkv.Model, arguments: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"prompt": [1], **arguments}
    with pytest.raises(TypeError) as caught:
        wkv.generate(model, wkv.Tokenizer.bytes(), **given)
    assert words in str(caught.value)


def test_logits_of_another_model(model: wkv.Model) -> None:
    logits = np.zeros(model.info.n_vocab - 1, dtype=np.float32)
    with pytest.raises(ValueError, match=r"\[generate\] logits have shape"):
        wkv.generate(model, wkv.Tokenizer.bytes(), "", logits=logits)
