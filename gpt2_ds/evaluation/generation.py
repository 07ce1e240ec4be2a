"""Sampling: a prompt in, one new token of every sample out at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gpt2_ds.config.errors import Fault, UserError
from gpt2_ds.model import GPT2LMHeadModel, KeyValue


def generate(
    model: GPT2LMHeadModel,
    prompt_ids: Tensor | Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int,
    num_samples: int = 1,
    eot_token: int | None = None,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Continue a prompt, `num_samples` times side by side.

    The arguments are checked at the call, before the first token is asked for. The filters are
    applied in the order temperature, top_k, top_p.

    A text may outgrow `n_positions`. Positions are learned from 0, so cached keys cannot be moved
    to earlier ones: the last half of the window is run again as a new prompt, at positions from 0,
    and the cache refills from there. That costs one long forward for every n_positions / 2 tokens,
    and the text from before that half is forgotten.

    With ZeRO-3 call it on every rank with the same arguments: all draw the same tokens, so all do
    the same number of forwards.

    Args:
        model: runs in eval mode, and is in the mode it was in whenever the caller has control.
        prompt_ids: (T,) the one prompt of all samples; or (B, T), where B * num_samples samples
            are drawn, those of one prompt next to each other.
        max_new_tokens: columns to yield at most.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: keep only this many of the likeliest tokens; None = all.
        top_p: keep only the likeliest tokens whose probabilities first add up to this; None = all.
        seed: the same arguments and seed draw the same tokens on one device.
        num_samples: continuations per prompt.
        eot_token: a sample that has drawn it repeats it; when all have, the iterator ends.
        use_cache: False runs the whole text again for each token; the same result, slower.

    Returns:
        An iterator over (B * num_samples,) int64 tensors, the next token of every sample.

    Raises:
        UserError: an argument out of its range; all of them are named at once.
    """
    device = next(model.parameters()).device
    prompt = torch.as_tensor(prompt_ids, dtype=torch.long, device=device)
    prompt = prompt[None] if prompt.dim() == 1 else prompt  # (B, T)
    _check(model, prompt, max_new_tokens, temperature, top_k, top_p, num_samples)
    generator = torch.Generator(device=device).manual_seed(seed)
    # A function apart: the body of a generator function, checks included, would wait for next().
    return _columns(
        model,
        prompt.repeat_interleave(num_samples, dim=0),
        max_new_tokens,
        lambda logits: _draw(logits, temperature, top_k, top_p, generator),
        eot_token,
        use_cache,
    )


def _check(
    model: GPT2LMHeadModel,
    prompt: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    num_samples: int,
) -> None:
    faults = []
    for where, count in (("--max-new-tokens", max_new_tokens), ("--num-samples", num_samples)):
        if count < 1:
            faults.append(Fault(where, f"{count} is below 1", "Give a number from 1 up."))
    if not (temperature >= 0 and math.isfinite(temperature)):
        faults.append(
            Fault(
                "--temperature",
                f"{temperature} is not a number from 0 up",
                "Give 0 for the likeliest token, 1 for the model's own distribution.",
            )
        )
    if top_k is not None and top_k < 1:
        faults.append(
            Fault("--top-k", f"{top_k} is below 1", "Give a number from 1 up, or leave it out.")
        )
    if top_p is not None and not 0 < top_p <= 1:
        faults.append(
            Fault(
                "--top-p",
                f"{top_p} is not above 0 and at most 1",
                "Give a probability such as 0.95, or leave it out.",
            )
        )
    limit, vocab_size = model.config.n_positions, model.config.vocab_size
    if prompt.dim() != 2 or prompt.numel() == 0:
        faults.append(
            Fault(
                "--prompt",
                f"it holds no token (shape {tuple(prompt.shape)})",
                "Give at least one token; the end-of-text token starts a text from nothing.",
            )
        )
    elif prompt.size(1) > limit:
        faults.append(
            Fault(
                "--prompt",
                f"it has {prompt.size(1)} tokens and the model {limit} positions",
                f"Give at most {limit} tokens.",
            )
        )
    elif not 0 <= int(prompt.min()) <= int(prompt.max()) < vocab_size:
        faults.append(
            Fault(
                "--prompt",
                f"its token ids run from {int(prompt.min())} to {int(prompt.max())} and the "
                f"vocabulary from 0 to {vocab_size - 1}",
                "Encode it with the tokenizer the model was trained with.",
            )
        )
    if faults:
        raise UserError(*faults)


def _columns(
    model: GPT2LMHeadModel,
    window: Tensor,
    max_new_tokens: int,
    draw: Callable[[Tensor], Tensor],
    eot_token: int | None,
    use_cache: bool,
) -> Iterator[Tensor]:
    limit = model.config.n_positions
    ended = torch.zeros(len(window), dtype=torch.bool, device=window.device)  # (B,)
    past: tuple[KeyValue, ...] | None = None
    unseen = window  # (B, T) what the cache does not hold yet
    for _ in range(max_new_tokens):
        logits, past = _next_logits(model, unseen, past, use_cache)  # (B, vocab_size)
        token = draw(logits)  # (B,)
        if eot_token is not None:
            token = torch.where(ended, eot_token, token)
            ended |= token == eot_token
        yield token
        if eot_token is not None and bool(ended.all()):
            return
        window = torch.cat((window, token[:, None]), dim=1)  # (B, T + 1)
        unseen = token[:, None] if use_cache else window
        if window.size(1) > limit:
            window = window[:, -max(1, limit // 2) :]
            unseen, past = window, None


# no_grad and eval only around the forward: held across a `yield` they would leak to the caller.
@torch.no_grad()
def _next_logits(
    model: GPT2LMHeadModel,
    input_ids: Tensor,
    past: tuple[KeyValue, ...] | None,
    use_cache: bool,
) -> tuple[Tensor, tuple[KeyValue, ...] | None]:
    was_training = model.training
    model.eval()
    try:
        output = model(input_ids, past_key_values=past, use_cache=use_cache, logits_to_keep=1)
    finally:
        model.train(was_training)
    return output.logits[:, -1].float(), output.past_key_values


def _draw(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> Tensor:
    """(B, vocab_size) fp32 logits -> (B,) token ids."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = filtered_probabilities(logits, temperature, top_k, top_p)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def filtered_probabilities(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """The distribution that is drawn from.

    Tokens as likely as the last one within `top_k` are kept too. `top_p` always keeps the likeliest
    token (nucleus sampling, https://arxiv.org/abs/1904.09751, section 3.1).

    Args:
        logits: (B, vocab_size) fp32.
        temperature: above 0.
        top_k: as for `generate`.
        top_p: as for `generate`.

    Returns:
        (B, vocab_size) fp32, each row adding up to 1.
    """
    # The largest logit becomes 0, so that a tiny temperature cannot overflow to inf - inf.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if top_k is not None:
        smallest_kept = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < smallest_kept, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        likelier = ordered.cumsum(dim=-1) - ordered  # (B, vocab_size) mass of the likelier ones
        dropped = (likelier >= top_p).scatter(-1, order, likelier >= top_p)
        logits = logits.masked_fill(dropped, float("-inf"))
    return logits.softmax(dim=-1)
