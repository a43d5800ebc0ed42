"""The sampler: official code's probabilities, penalties, random numbers, errors."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wkv
from hypothesis import given, settings
from hypothesis import strategies as st
from wkv import Sampler, Sampling

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden/sampling.json").read_text(encoding="utf-8")
)
V1_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p_ratio": "top_a",
    "min_p_pow": "top_a_power",
}


def vector(case: dict[str, Any]) -> np.ndarray:
    return np.array(GOLDEN["vectors"][case["vector"]], dtype=np.float32)


def pip_sampling(case: dict[str, Any]) -> Sampling:
    # The package takes temperature 0 for top_p 0 at temperature 1.
    cold = case["temperature"] == 0
    return Sampling(
        temperature=1.0 if cold else case["temperature"],
        top_p=0.0 if cold else case["top_p"],
        top_k=case["top_k"],
    )


SAMPLINGS: dict[str, Callable[[dict[str, Any]], Sampling]] = {
    "pip": pip_sampling,
    "v1_utils": lambda case: Sampling(
        variant="v1", **{V1_NAMES[name]: value for name, value in case["args"].items()}
    ),
    "v2v3v4_utils": lambda case: Sampling(
        variant="v2", temperature=case["temperature"], top_p=case["top_p"]
    ),
    "v7_demo": lambda case: Sampling(
        variant="v7",
        temperature=case["temperature"],
        top_p=case["top_p"],
        top_k=case["top_k"],
    ),
    "top_p_x_definition": lambda case: Sampling(top_p=case["top_p"], top_p_x=case["x"]),
}
SAMPLINGS["v1_utils_top_a"] = SAMPLINGS["v1_utils"]


@pytest.mark.parametrize("kind", sorted(GOLDEN["kinds"]))
def test_probabilities_are_those_of_the_official_code(kind: str) -> None:
    cases = [case for case in GOLDEN["cases"] if case["kind"] == kind and "quirk" not in case]
    assert cases
    for case in cases:
        got = Sampler(SAMPLINGS[kind](case)).probabilities(vector(case))
        np.testing.assert_allclose(
            got, case["probs"], rtol=2e-6, atol=1e-7, err_msg=str({**case, "probs": ...})
        )


def test_top_p_of_one_is_off_where_the_package_turns_greedy() -> None:
    """Float32 rounding keeps the package's running sum below 1.0, and it then keeps only the best
    token. Here 1.0 keeps all tokens, as it does in every other sampler of the authors."""
    cases = [case for case in GOLDEN["cases"] if "quirk" in case]
    assert len(cases) == 48
    for case in cases:
        x = vector(case).astype(np.float64)
        p = np.exp(x - x.max())
        if 0 < case["top_k"] < len(p):
            p[np.argsort(p, kind="stable")[: -case["top_k"]]] = 0
        p = p ** (1 / case["temperature"])
        got = Sampler(pip_sampling(case)).probabilities(vector(case))
        np.testing.assert_allclose(got, p / p.sum(), rtol=2e-6, atol=1e-7)


def test_top_a_as_its_author_describes_it() -> None:
    """Drop p < 0.2 * max(p)^2: below 0.162, 0.05, 0.002 where the maximum is 0.9, 0.5, 0.1."""
    random = np.random.default_rng(2)
    for top, limit in [(0.9, 0.162), (0.5, 0.05), (0.1, 0.002)]:
        p = np.concatenate([[top], (1 - top) * random.dirichlet(np.full(40, 0.3))])
        if p.max() > top:
            p = np.concatenate([[top], np.full(40, (1 - top) / 40)])
        kept = Sampler(Sampling(top_a=0.2)).probabilities(np.log(p + 1e-30)) > 0
        np.testing.assert_array_equal(kept, p >= limit)


def test_penalties_of_the_package() -> None:
    golden = GOLDEN["penalty"]
    sampling = Sampling(
        presence_penalty=golden["alpha_presence"],
        frequency_penalty=golden["alpha_frequency"],
        penalty_decay=golden["alpha_decay"],
        ban=golden["token_ban"],
        uncounted=[
            token
            for token, text in zip(golden["sampled"], golden["decoded"], strict=True)
            if text in " \t0123456789"
        ],
    )
    sampler = Sampler(sampling)
    logits = np.zeros(golden["n_vocab"], dtype=np.float32)
    for token, change in zip(golden["sampled"], golden["logit_change_per_step"], strict=True):
        want = np.zeros_like(logits)
        for key, value in change.items():
            want[int(key)] = float(value)
        np.testing.assert_allclose(sampler.adjust(logits), want, rtol=0, atol=2e-7)
        sampler.accept(token)


def test_greedy_and_bans() -> None:
    logits = np.array([1, 5, 3, 5], dtype=np.float32)
    assert Sampler(Sampling(temperature=0, top_p=0.1)).sample(logits) == 1
    assert Sampler(Sampling(temperature=0, ban=[1])).sample(logits) == 3
    assert Sampler(Sampling(temperature=0, bias={0: 10.0})).sample(logits) == 0
    assert Sampler(Sampling(temperature=0, bias={1: -float("inf"), 3: -3.0})).sample(logits) == 2


def test_a_seed_is_a_text() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 65536).astype(np.float32)
    draws = [Sampler(Sampling(seed=7)) for _ in range(2)]
    first, second = ([sampler.sample(logits) for _ in range(20)] for sampler in draws)
    assert first == second
    assert first != [Sampler(Sampling(seed=8)).sample(logits) for _ in range(20)]
    again = Sampler(Sampling(seed=7))
    again.position = 10
    assert [again.sample(logits) for _ in range(10)] == first[10:]
    assert again.position == 20
    again.reset()
    assert again.sample(logits) == first[0]
    unseeded = [Sampler(Sampling()) for _ in range(2)]
    assert unseeded[0].seed != unseeded[1].seed


def test_copies_go_separate_ways() -> None:
    logits = np.zeros(100, dtype=np.float32)
    sampler = Sampler(Sampling(seed=1, presence_penalty=1.0))
    sampler.accept(5)
    for other in (sampler.copy(), copy.copy(sampler), copy.deepcopy(sampler)):
        assert other.seed == sampler.seed
        assert other.sample(logits) == sampler.copy().sample(logits)
        other.accept(6)
    assert sampler.adjust(logits)[6] == 0
    assert sampler.adjust(logits)[5] == -1


def test_logits_of_any_kind_and_never_changed() -> None:
    sampler = Sampler(Sampling(temperature=0, presence_penalty=2.0))
    sampler.accept(1)
    for logits in (
        [0.0, 9.0, 1.0],
        np.array([0.0, 9.0, 1.0]),
        np.array([0, 9, 1]),
        np.array([[0, 9], [9, 9], [1, 9]], dtype=np.float32)[:, 0],
    ):
        assert sampler.sample([0.0, 2.5, 1.0]) == 2
        assert sampler.sample(logits) == 1
    frozen = np.array([0.0, 9.0, 1.0], dtype=np.float32)
    frozen.flags.writeable = False
    sampler.sample(frozen)
    with pytest.raises(ValueError, match="one dimension"):
        sampler.sample(np.zeros((2, 3)))


def test_what_cannot_be_sampled_is_an_error() -> None:
    sampler = Sampler()
    for logits, words in [
        ([], "no logits"),
        ([0.0, float("nan")], "NaN"),
        ([0.0, float("inf")], "infinity"),
        ([-float("inf")] * 3, "none of the 3 tokens"),
    ]:
        with pytest.raises(ValueError, match=words):
            sampler.sample(logits)
    with pytest.raises(ValueError, match=r"token 3 \(ban\) is outside the 3 logits"):
        Sampler(Sampling(ban=[3])).sample([0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"temperature": -0.1}, "temperature must be in"),
        ({"temperature": float("nan")}, "temperature must be in"),
        ({"top_p": -1.0}, "top_p must be at least 0"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"min_p": 1.1}, "min_p must be in"),
        ({"typical": float("nan")}, "typical must be"),
        ({"penalty_decay": 1.5}, "penalty_decay must be in"),
        ({"presence_penalty": float("inf")}, "presence_penalty must be finite"),
        ({"bias": {3: float("inf")}}, "bias of token 3"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**64}, "seed must be in"),
        ({"variant": "v9"}, "variant must be"),
    ],
)
def test_parameters_out_of_range(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sampling(**arguments)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"temperature": "1"}, TypeError, "temperature must be a number, got '1'"),
        ({"top_p": None}, TypeError, "top_p must be a number, got None"),
        ({"top_k": 1.5}, TypeError, "top_k must be an integer, got 1.5"),
        ({"top_k": 2**31}, ValueError, "top_k must be at most"),
        ({"bias": {"a": 1.0}}, TypeError, "a token of bias must be an integer, got 'a'"),
        ({"bias": {1: "b"}}, TypeError, "bias[1] must be a number, got 'b'"),
        ({"ban": [2**40]}, ValueError, "a token of ban must be at most"),
        ({"uncounted": ["a"]}, TypeError, "a token of uncounted must be an integer"),
        ({"variant": None}, TypeError, "variant must be a str, got None"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
    ],
)
def test_parameters_of_other_types(
    arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as caught:
        Sampling(**arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sampling_is_a_value() -> None:
    sampling = Sampling(top_p=0.5, ban=iter([1, 2]), bias={3: 1.0})
    assert sampling == Sampling(top_p=0.5, ban=(1, 2), bias={3: 1.0})
    assert hash(sampling) == hash(Sampling(top_p=0.5, ban=(1, 2), bias={3: 1.0}))
    with pytest.raises(AttributeError):
        sampling.top_p = 1.0  # type: ignore[misc]


@settings(deadline=None, max_examples=200)
@given(
    logits=st.lists(st.integers(-40, 40).map(lambda i: i / 4), min_size=1, max_size=40),
    temperature=st.sampled_from([0.0, 0.25, 1.0, 3.0]),
    top_p=st.sampled_from([0.0, 0.4, 0.9, 1.0]),
    top_k=st.integers(0, 10),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    typical=st.sampled_from([0.0, 0.5, 1.0]),
    top_a=st.sampled_from([0.0, 0.2, 100.0]),
    top_p_x=st.sampled_from([0.0, 0.05]),
    variant=st.sampled_from(["pip", "v1", "v2", "v7"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_draws_come_from_the_probabilities(
    logits: list[float], seed: int, **parameters: Any
) -> None:
    sampler = Sampler(wkv.Sampling(seed=seed, **parameters))
    p = sampler.probabilities(logits)
    assert abs(p.sum() - 1) < 1e-5
    assert (p >= 0).all()
    for _ in range(5):
        assert p[sampler.sample(logits)] > 0
    if parameters["typical"] == 1.0:  # of equal logits top_k may keep any
        likeliest = np.array(logits) == max(logits)
        assert p[likeliest].max() == pytest.approx(p.max())
    order = np.argsort(-np.array(logits), kind="stable")
    if parameters["typical"] == 1.0:  # nothing less probable is kept in place of something more
        kept = np.array(logits)[p > 0]
        dropped = np.array(logits)[p == 0]
        assert not len(dropped) or dropped.max() <= kept.min() or p[order[0]] < 1e-30


def test_one_thread_at_a_time() -> None:
    sampler = Sampler(Sampling(top_p=0.9, typical=0.9))
    logits = np.random.default_rng(1).normal(0, 1, 1 << 18).astype(np.float32)
    refused = []

    def work() -> None:
        for _ in range(30):
            try:
                sampler.sample(logits)
            except ValueError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another thread" in words for words in refused)
    assert sampler.position + len(refused) == 90
