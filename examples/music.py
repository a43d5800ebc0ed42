"""Music: ABC notation, or the words of the MIDI models.

    python examples/music.py MODEL                                  (ABC)
    python examples/music.py MODEL --midi tokenizer-midi.json       (MIDI)

ABC models read characters; 2 begins a tune and 3 ends it. MIDI models have a tokenizer file of
words, `<start>` and `<end>` among them; the sampler's settings are those of their author.
"""

from __future__ import annotations

import argparse

import wkv


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--midi", metavar="FILE", help="the models' tokenizer-midi.json")
    parser.add_argument("--prompt", default="", help="how the piece begins")
    parser.add_argument("--max-tokens", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    model = wkv.Model.load(arguments.model)
    midi = arguments.midi is not None
    tokenizer = wkv.Tokenizer.from_file(arguments.midi) if midi else wkv.Tokenizer.abc()
    begin = 1 if midi else 2
    sampling = wkv.Sampling(top_k=8, top_p=0.8, seed=arguments.seed)
    if midi:
        sampling = wkv.Sampling(
            top_k=8, top_p=0.8, frequency_penalty=0.5, penalty_decay=0.997, seed=arguments.seed
        )
    sampler = wkv.Sampler(sampling)
    stream = tokenizer.stream()
    state = model.new_state()
    logits = model.forward([begin, *tokenizer.encode(arguments.prompt)], state)
    print(arguments.prompt, end=" " if midi and arguments.prompt else "")
    for n in range(arguments.max_tokens):
        if midi:
            logits[0] += (n - 2000) / 500  # the end becomes likelier
            logits[127] -= 1  # the longest wait
        token = sampler.sample(logits)
        if token == tokenizer.eos_id:
            break
        # Times and velocities come before 127 and may repeat; notes wear out.
        sampler.accept(token, 1.0 if not midi or token >= 127 else 0.3)
        print(stream.push(token), end="", flush=True)
        logits = model.forward([token], state)
    print(stream.flush())


if __name__ == "__main__":
    main()
