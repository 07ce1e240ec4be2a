"""From a finished or running run to text: its model on one process, its samples as they come."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.errors import user_error
from gpt2_ds.config.recipe_file import load_stored
from gpt2_ds.data.format.tokenizer import Tokenizer
from gpt2_ds.evaluation.generation import generate
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from gpt2_ds.parallel.process_group import local_device
from gpt2_ds.parallel.states.parameter_states import load_fp32_weights
from gpt2_ds.parallel.states.pickles import check_pickles, pickle_names


def load_for_sampling(run_dir: Path, checkpoint: Path) -> tuple[GPT2LMHeadModel, Tokenizer]:
    """The model and tokenizer of a checkpoint, on this machine's device, in fp32.

    Args:
        run_dir: the run; its recipe gives the sizes.
        checkpoint: the step directory.

    Raises:
        UserError: the run's recipe or the checkpoint's tokenizer is damaged; a file of the
            checkpoint would run something when it is loaded.
    """
    check_pickles(checkpoint, pickle_names(checkpoint))
    recipe = load_stored(run_dir / "recipe.yaml").recipe
    tokenizer = Tokenizer.open(checkpoint / "tokenizer")
    model = GPT2LMHeadModel(GPT2Config(**model_fields(recipe, tokenizer.n_vocab)))
    model.load_state_dict(load_fp32_weights(checkpoint))
    return model.to(local_device()).eval(), tokenizer


def stream_samples(
    model: GPT2LMHeadModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> Iterator[str]:
    """Pieces of text to print as they come: each sample begins with its prompt, ends with a line.

    Sample i draws from seed + i, so more samples do not change the first ones. Every prompt is
    read as the beginning of a document.

    Raises:
        UserError: an argument of `generate` is out of its range.
    """
    if num_samples < 1:
        raise user_error("--num-samples", f"{num_samples} is below 1", "Give a number from 1 up.")
    if not 0 <= seed < 2**62:
        raise user_error("--seed", f"{seed} is not from 0 to 2^62 - 1", "Give a smaller number.")
    ids = [tokenizer.eot_token, *tokenizer.encode(prompt).tolist()]
    for sample in range(num_samples):
        columns = generate(
            model,
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed + sample,
            eot_token=tokenizer.eot_token,
        )
        yield prompt
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for column in columns:
            token = int(column[0])
            if token != tokenizer.eot_token:
                yield decoder.decode(tokenizer.decode_bytes([token]))
        yield decoder.decode(b"", final=True) + "\n"
        if sample + 1 < num_samples:
            yield "---\n"
