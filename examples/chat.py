"""A conversation in thirty lines: the state is the history.

    python examples/chat.py MODEL

`wkv chat MODEL` does the same and can save, load and try again.
"""

from __future__ import annotations

import argparse

import wkv


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--tokenizer", default="world", choices=("world", "bytes"))
    parser.add_argument("--max-tokens", type=int, default=500)
    arguments = parser.parse_args()

    model = wkv.Model.load(arguments.model)
    world = arguments.tokenizer == "world"
    tokenizer = wkv.Tokenizer.world() if world else wkv.Tokenizer.bytes()
    sampling = wkv.Sampling(top_p=0.3, presence_penalty=0.2, frequency_penalty=0.2)
    state = model.new_state()
    while True:
        try:
            message = input("User: ").strip()
        except EOFError:
            return
        blank = "\n\n" if state.position else ""
        answer = wkv.generate(
            model,
            tokenizer,
            f"{blank}User: {message}\n\nAssistant:",
            max_tokens=arguments.max_tokens,
            sampling=sampling,
            stop=["\n\nUser:"],
            state=state,
        )
        print("\nAssistant:", end="")
        for piece in answer:
            print(piece, end="", flush=True)
        print("\n")


if __name__ == "__main__":
    main()
