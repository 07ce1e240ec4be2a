"""Sample text from a run: python launch/generate.py --run runs/quickstart --prompt "def "."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt2_ds.checkpoint.manifest import choose_checkpoint
from gpt2_ds.config.errors import EXIT_DONE, exit_code_of


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Continue a prompt with the model of a run, on one process.",
        epilog='example: python launch/generate.py --run runs/quickstart --prompt "def " --seed 2',
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of the run")
    add("--step", type=int, help="step of the checkpoint (the newest)")
    add("--prompt", action="append", required=True, help="text to continue; may be given again")
    add("--num-samples", type=int, default=1, metavar="N", help="continuations of each prompt (1)")
    add("--max-new-tokens", type=int, default=200, metavar="N", help="tokens of each (200)")
    add("--temperature", type=float, default=0.8, help="0 takes the likeliest token (0.8)")
    add("--top-k", type=int, metavar="K", help="choose among the K likeliest tokens (all)")
    add("--top-p", type=float, metavar="P", help="the likeliest tokens that sum to P (all)")
    add("--seed", type=int, default=1, help="the same seed gives the same text (1)")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    checkpoint, _ = choose_checkpoint(args.run, args.step)

    from gpt2_ds.evaluation.sampling import (  # torch: after the check
        load_for_sampling,
        stream_samples,
    )

    model, tokenizer = load_for_sampling(args.run, checkpoint)
    for prompt in args.prompt:
        for text in stream_samples(
            model,
            tokenizer,
            prompt,
            num_samples=args.num_samples,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
        ):
            print(text, end="", flush=True)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
