"""Sampling against transformers' generate and its filters."""

from __future__ import annotations

import time

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt2_ds.config.errors import UserError
from gpt2_ds.evaluation.generation import filtered_probabilities, generate
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel

PROMPT = [5, 17, 3, 80]


def model_of(**sizes: object) -> GPT2LMHeadModel:
    small = {"vocab_size": 97, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**(small | sizes)), seed=0)
    with torch.no_grad():  # larger than at the start of training, so that tokens differ clearly
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


def sampled(model: GPT2LMHeadModel, prompt: object = PROMPT, **given: object) -> torch.Tensor:
    arguments = {"max_new_tokens": 12, "seed": 1} | given
    return torch.stack(list(generate(model, prompt, **arguments)), dim=1)


def test_greedy_is_transformers_generate() -> None:
    ours = model_of()
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=97,
            n_positions=24,
            n_embd=32,
            n_layer=2,
            n_head=4,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    theirs.load_state_dict(
        {
            name: tensor.t() if tensor.dim() == 2 and ".h." in name else tensor
            for name, tensor in ours.state_dict().items()
        }
    )
    prompts = torch.tensor([PROMPT, [1, 2, 3, 4]])
    expected = theirs.generate(prompts, do_sample=False, max_new_tokens=20)[:, 4:]
    assert torch.equal(sampled(ours, prompts, temperature=0, max_new_tokens=20), expected)


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("n_positions", [1, 5, 24])
def test_cache_and_no_cache_draw_the_same_past_the_last_position(
    temperature: float, n_positions: int
) -> None:
    model = model_of(n_positions=n_positions)
    given = {
        "prompt": PROMPT[:n_positions],
        "temperature": temperature,
        "max_new_tokens": 60,
        "num_samples": 3,
    }
    with_cache = sampled(model, **given)
    assert with_cache.shape == (3, 60)
    assert torch.equal(with_cache, sampled(model, **given, use_cache=False))


def test_full_window_goes_on_from_its_last_half() -> None:
    model = model_of(n_positions=8)
    seen = []  # what each forward was given
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].tolist()))
    text = PROMPT + sampled(model, max_new_tokens=12)[0].tolist()
    expected = [text[:4], *([token] for token in text[4:8])]
    expected += [text[5:9], *([token] for token in text[9:13]), text[10:14], [text[14]]]
    assert seen == expected


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.9, 1.0])
def test_distribution_is_that_of_transformers_warpers(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 2
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None:
        expected = TopPLogitsWarper(top_p)(None, expected)
    found = filtered_probabilities(logits, temperature, top_k, top_p)
    assert torch.equal(found > 0, expected.softmax(-1) > 0)
    assert_close(found, expected.softmax(-1), rtol=0, atol=1e-6)


def test_tiny_temperature_is_the_likeliest_token() -> None:
    found = filtered_probabilities(torch.tensor([[300.0, -2e4, 299.0]]), 1e-37, None, 0.9)
    assert found.tolist() == [[1.0, 0.0, 0.0]]


def test_draws_follow_the_distribution() -> None:
    model = model_of(vocab_size=7)
    logits = model(torch.tensor([[1, 2]])).logits[0, -1].detach()
    drawn = sampled(
        model, [1, 2], num_samples=20_000, max_new_tokens=1, temperature=0.7, top_k=4, top_p=0.95
    )
    frequency = drawn.flatten().bincount(minlength=7) / 20_000
    expected = filtered_probabilities(logits[None], 0.7, 4, 0.95)[0]
    assert (frequency[expected == 0] == 0).all()
    assert_close(frequency, expected, rtol=0, atol=0.015)  # 4 standard errors


def test_seed_alone_decides() -> None:
    model = model_of()
    torch.manual_seed(1)
    first = sampled(model, seed=3, num_samples=2)
    state = torch.get_rng_state()
    assert torch.equal(sampled(model, seed=3, num_samples=2), first)
    assert torch.equal(torch.get_rng_state(), state)  # training's generator is left alone
    assert not torch.equal(sampled(model, seed=4, num_samples=2), first)
    assert not torch.equal(first[0], first[1])


def test_samples_of_one_prompt_are_next_to_each_other() -> None:
    model = model_of()
    prompts = torch.tensor([PROMPT, [1, 2, 3, 4]])
    found = sampled(model, prompts, temperature=0, num_samples=2)
    alone = torch.cat([sampled(model, prompt, temperature=0) for prompt in prompts])
    assert torch.equal(found, alone[[0, 0, 1, 1]])


@pytest.mark.parametrize("temperature", [0, 50.0])
def test_padded_tokens_are_never_sampled(temperature: float) -> None:
    model = model_of(pad_vocab_to_multiple_of=128)
    with torch.no_grad():
        model.lm_head.weight[97:] = 1e3 * torch.sign(torch.randn(31, 32))
    drawn = sampled(model, num_samples=200, max_new_tokens=30, temperature=temperature)
    assert drawn.max() < 97


def test_ended_samples_repeat_the_end_and_the_iterator_stops_when_all_have() -> None:
    model = model_of(vocab_size=5)
    drawn = sampled(model, [1], num_samples=4, max_new_tokens=500, temperature=1e3, eot_token=2)
    assert drawn.size(1) < 500
    ended = (drawn == 2).long().cumsum(dim=1) > 0
    assert ended[:, -1].all()
    assert not ended[:, -2].all()
    assert (drawn[ended] == 2).all()


@pytest.mark.parametrize("training", [True, False])
def test_caller_keeps_mode_and_gradients_between_tokens(training: bool) -> None:
    model = model_of(resid_pdrop=0.5).train(training)
    columns = generate(model, PROMPT, max_new_tokens=3, temperature=0, seed=0)
    inside = []
    model.register_forward_pre_hook(
        lambda module, _: inside.append((module.training, torch.is_grad_enabled()))
    )
    for _ in range(2):
        next(columns)
        assert inside.pop() == (False, False)
        assert model.training is training
        assert torch.is_grad_enabled()
    drawn = sampled(model, temperature=0)  # without dropout: twice the same
    assert torch.equal(drawn, sampled(model, temperature=0))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"temperature": -0.1}, "--temperature: -0.1 is not a number from 0 up. Give 0 for"),
        ({"temperature": float("nan")}, "--temperature: nan is not a number from 0 up."),
        ({"top_k": 0}, "--top-k: 0 is below 1. Give a number from 1 up, or leave it out."),
        ({"top_p": 0.0}, "--top-p: 0.0 is not above 0 and at most 1. Give a probability"),
        ({"top_p": 1.5}, "--top-p: 1.5 is not above 0 and at most 1."),
        ({"max_new_tokens": 0}, "--max-new-tokens: 0 is below 1. Give a number from 1 up."),
        ({"num_samples": 0}, "--num-samples: 0 is below 1. Give a number from 1 up."),
        ({"prompt": []}, "--prompt: it holds no token (shape (1, 0)). Give at least one token"),
        (
            {"prompt": [1] * 25},
            "--prompt: it has 25 tokens and the model 24 positions. Give at most 24 tokens.",
        ),
        (
            {"prompt": [1, 97]},
            "--prompt: its token ids run from 1 to 97 and the vocabulary from 0 to 96. Encode it",
        ),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(given: dict[str, object], message: str) -> None:
    arguments = {"prompt": PROMPT, "max_new_tokens": 1, "seed": 0} | given
    prompt = arguments.pop("prompt")
    with pytest.raises(UserError) as refused:
        generate(model_of(), prompt, **arguments)  # without next()
    assert str(refused.value).startswith(message)


def test_all_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(UserError) as refused:
        generate(model_of(), PROMPT, max_new_tokens=0, top_k=0, top_p=2.0, seed=0)
    assert [fault.where for fault in refused.value.faults] == [
        "--max-new-tokens",
        "--top-k",
        "--top-p",
    ]


@pytest.mark.benchmark
@pytest.mark.heavy
def test_cache_is_faster_than_none() -> None:
    model = model_of(n_positions=256, n_embd=128, n_layer=4)

    def seconds(use_cache: bool) -> float:
        start = time.perf_counter()
        sampled(model, max_new_tokens=240, temperature=0, use_cache=use_cache)
        return time.perf_counter() - start

    seconds(True)
    ratio = min(seconds(False) for _ in range(2)) / min(seconds(True) for _ in range(2))
    print(f"without cache {ratio:.1f} times the time")
    assert ratio > 2
