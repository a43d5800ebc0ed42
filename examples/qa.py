"""One question, the prompt that RWKV's author recommends for testing any model.

    python examples/qa.py MODEL "Why is the sky blue?" --samples 3

The prompt is read once; every answer starts from a copy of the state.
"""

from __future__ import annotations

import argparse

import wkv


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("question")
    parser.add_argument("--tokenizer", default="world", choices=("world", "bytes"))
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    model = wkv.Model.load(arguments.model)
    world = arguments.tokenizer == "world"
    tokenizer = wkv.Tokenizer.world() if world else wkv.Tokenizer.bytes()
    prompt = f"\nQ & A\n\nQuestion:\n{arguments.question}\n\nDetailed Expert Answer:\n"

    state = model.new_state()
    logits = model.forward(tokenizer.encode(prompt), state)
    for sample, branch in enumerate(state.fork(arguments.samples)):
        sampling = wkv.Sampling(
            temperature=1.0,
            top_p=0.5,
            presence_penalty=0.4,
            frequency_penalty=0.4,
            seed=arguments.seed + sample,
        )
        answer = wkv.generate(
            model,
            tokenizer,
            [],
            max_tokens=arguments.max_tokens,
            sampling=sampling,
            stop=["\n\nQuestion:", "\nQ & A"],
            state=branch,
            logits=logits,
        )
        print(f"--- {sample + 1}\n{''.join(answer).strip()}")


if __name__ == "__main__":
    main()
