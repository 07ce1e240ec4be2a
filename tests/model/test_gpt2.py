"""The model against transformers, its masks, its refusals."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from gpt2_ds.model.masking import attention_allowed
from tests.model.conftest import SMALL, Pair, like_ours

EXACT = {"rtol": 0.0, "atol": 1e-5}


def tokens(*shape: int, vocab_size: int = 97, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def assert_same_gradients(
    theirs: torch.nn.Module, ours: torch.nn.Module, rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    expected = {n: like_ours(n, p.grad) for n, p in theirs.named_parameters()}
    found = {n: p.grad for n, p in ours.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert_close(gradient, expected[name], rtol=rtol, atol=atol, msg=name)


# --- against transformers


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"n_layer": 1, "n_head": 1, "n_embd": 8},
        {"n_layer": 5, "n_head": 8, "n_embd": 64, "vocab_size": 203},
        {"n_inner": 50, "layer_norm_epsilon": 1e-3},
        {"tie_word_embeddings": False, "activation_function": "gelu_pytorch_tanh"},
    ],
    ids=str,
)
def test_logits_loss_and_every_gradient_are_transformers(
    pair: Callable[..., Pair], sizes: dict[str, object]
) -> None:
    theirs, ours = pair(**sizes)
    x = tokens(3, 20)
    labels = x.masked_fill(tokens(3, 20, seed=1) < 20, -100)
    expected = theirs(x, labels=labels)
    found = ours(x, labels=labels)
    assert_close(found.logits, expected.logits, **EXACT)
    assert_close(found.loss, expected.loss, **EXACT)
    expected.loss.backward()
    found.loss.backward()
    assert_same_gradients(theirs, ours)


@settings(max_examples=12)
@given(
    head_dim=st.integers(1, 9),
    n_head=st.integers(1, 4),
    n_layer=st.integers(1, 3),
    B=st.integers(1, 3),
    T=st.integers(1, 16),
    vocab_size=st.integers(2, 60),
)
def test_logits_are_transformers_for_any_shape(
    head_dim: int, n_head: int, n_layer: int, B: int, T: int, vocab_size: int
) -> None:
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=16,
        n_embd=head_dim * n_head,
        n_layer=n_layer,
        n_head=n_head,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs, ours = transformers.GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config).eval()
    ours.load_state_dict({n: like_ours(n, t) for n, t in theirs.state_dict().items()})
    x = tokens(B, T, vocab_size=vocab_size)
    assert_close(ours(x).logits, theirs(x).logits, **EXACT)


def test_shift_labels_are_labels_moved_by_one(pair: Callable[..., Pair]) -> None:
    theirs, ours = pair()
    x = tokens(2, 21)
    expected = theirs(x, labels=x).loss
    for return_logits in (True, False):
        found = ours(x[:, :-1], shift_labels=x[:, 1:], return_logits=return_logits)
        assert_close(found.loss, expected, **EXACT)
        assert (found.logits is None) != return_logits


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_masked_as_in_transformers(pair: Callable[..., Pair], side: str) -> None:
    theirs, ours = pair()
    x = tokens(3, 12)
    lengths = torch.tensor([12, 7, 1])
    index = torch.arange(12)
    keep = index < lengths[:, None] if side == "right" else index >= 12 - lengths[:, None]
    positions = (keep.long().cumsum(1) - 1).clamp(min=0)
    # The last padded position on the left would predict the first token from nothing.
    labels = x.masked_fill(~keep | (positions == 0), -100)
    given = {"attention_mask": keep.long(), "position_ids": positions, "labels": labels}
    # eager, for transformers' SDPA path gives fully masked rows other (meaningless) values
    theirs.set_attn_implementation("eager")
    expected, found = theirs(x, **given), ours(x, **given)
    assert found.logits.isfinite().all()
    assert_close(found.logits[keep], expected.logits[keep], **EXACT)
    assert_close(found.loss, expected.loss, **EXACT)
    # Padded inputs must not matter at all, so neither may what stands there.
    other = x.masked_fill(~keep, 5)
    assert_close(ours(other, **given).logits[keep], found.logits[keep], **EXACT)
    found.loss.backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters())


def test_parameter_names_are_transformers(pair: Callable[..., Pair]) -> None:
    theirs, ours = pair()
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("steps", [[5, 1, 1, 1], [1, 1, 1], [6, 4, 1, 3], [2, 7]], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_cache_changes_nothing(pair: Callable[..., Pair], steps: list[int], masked: bool) -> None:
    theirs, ours = pair()
    x = tokens(2, sum(steps))
    mask = torch.ones_like(x)
    if masked:
        mask[0, : min(2, steps[0] - 1)] = 0
    whole = ours(x, attention_mask=mask if masked else None).logits
    # Without a cache: how one is given to transformers changes between its versions.
    expected = theirs(x, attention_mask=mask, position_ids=torch.arange(sum(steps))[None]).logits
    past = None
    done = 0
    for step in steps:
        now = x[:, done : done + step]
        so_far = mask[:, : done + step] if masked else None
        found = ours(now, so_far, past_key_values=past, use_cache=True)
        past = found.past_key_values
        kept = mask[:, done : done + step].bool()
        assert_close(found.logits[kept], whole[:, done : done + step][kept], **EXACT)
        assert_close(found.logits[kept], expected[:, done : done + step][kept], **EXACT)
        done += step
        assert past[0][0].shape == (2, 4, done, 8)


def test_last_logits_alone_are_the_last_of_all() -> None:
    model = GPT2LMHeadModel(SMALL, seed=0)
    x = tokens(2, 9)
    assert_close(model(x, logits_to_keep=2).logits, model(x).logits[:, -2:], **EXACT)
    assert model(x, labels=x, logits_to_keep=2).logits.shape == (2, 2, 97)


# --- causality and documents


@given(at=st.integers(1, 23))
@settings(max_examples=8)
def test_later_tokens_cannot_change_earlier_logits(at: int) -> None:
    model = GPT2LMHeadModel(SMALL, seed=0)
    x = tokens(1, 24)
    changed = x.clone()
    changed[:, at:] = (changed[:, at:] + 1) % 97
    before, after = model(x).logits, model(changed).logits
    assert_close(after[:, :at], before[:, :at], rtol=0, atol=1e-6)
    assert (after[:, at:] - before[:, at:]).abs().amax(-1).min() > 1e-4


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(max_examples=15)
def test_masked_documents_are_documents_run_apart(lengths: list[int]) -> None:
    config = GPT2Config(vocab_size=97, n_positions=48, n_embd=32, n_layer=2, n_head=4)
    model = GPT2LMHeadModel(config, seed=0)
    x = tokens(2, sum(lengths))
    # Ids that come back: two documents of one id are still two where another lies between.
    ids = torch.repeat_interleave(torch.arange(len(lengths)) % 2, torch.tensor(lengths))
    rows = torch.stack((ids, torch.zeros_like(ids)))  # the second row is one document
    together = model(x, document_ids=rows).logits
    apart = torch.cat([model(part).logits for part in x[:1].split(lengths, dim=1)], dim=1)
    assert_close(together[:1], apart, **EXACT)
    assert_close(together[1:], model(x[1:]).logits, **EXACT)


def test_every_position_may_attend_to_itself() -> None:
    # On some kernels a row without any allowed key is NaN, so no test on one machine can see it.
    padded = torch.tensor([[0, 0, 1, 1]])
    allowed = attention_allowed(padded, None, 1, tokens(1, 3))
    assert allowed.int().tolist() == [[[[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]]


def test_documents_and_padding_together() -> None:
    model = GPT2LMHeadModel(SMALL, seed=0)
    x = tokens(1, 10)
    ids = torch.tensor([[0] * 4 + [1] * 6])
    mask = torch.tensor([[1] * 8 + [0] * 2])
    found = model(x, attention_mask=mask, document_ids=ids).logits
    assert_close(found[:, 4:8], model(x[:, 4:8]).logits, **EXACT)
    assert found.isfinite().all()


# --- recomputation, dropout


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_gives_the_same_gradients(dropout: float) -> None:
    sizes = {"vocab_size": 97, "n_positions": 24, "n_embd": 32, "n_layer": 3, "n_head": 4}
    drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    x = tokens(2, 20)
    found, saved = [], []
    for recompute in (False, True):
        model = GPT2LMHeadModel(
            GPT2Config(**sizes, **drop, activation_checkpointing=recompute), seed=0
        )
        torch.manual_seed(3)
        bytes_saved = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal bytes_saved
            bytes_saved += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(x, labels=x).loss
        saved.append(bytes_saved)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*found, strict=True):
        assert_close(recomputed, plain, rtol=0, atol=1e-7)
    assert saved[1] < 0.5 * saved[0]


@pytest.mark.parametrize("where", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])
def test_each_dropout_acts_in_training_only(where: str) -> None:
    sizes = {"vocab_size": 97, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **{where: 0.5}), seed=0)
    plain = GPT2LMHeadModel(GPT2Config(**sizes), seed=0)
    x = tokens(2, 20)
    assert not torch.allclose(model(x).logits, model(x).logits)
    model.eval()
    assert torch.equal(model(x).logits, plain(x).logits)


# --- refusals of forward


def cached() -> dict[str, object]:
    past = GPT2LMHeadModel(SMALL, seed=0)(tokens(2, 6), use_cache=True).past_key_values
    return {"past_key_values": past}


@pytest.mark.parametrize(
    "length, given, message",
    [
        (25, dict, "the sequence has 25 tokens and the model n_positions 24"),
        (
            6,
            lambda: {"labels": tokens(2, 6), "shift_labels": tokens(2, 6)},
            "labels and shift_labels are two forms of one thing: give one.",
        ),
        (
            6,
            lambda: {"attention_mask": torch.ones(2, 5)},
            "attention_mask has shape (2, 5), not (2, 6)",
        ),
        (
            6,
            lambda: {"attention_mask": torch.ones(2, 6), **cached()},
            "attention_mask has shape (2, 6), not (2, 12)",
        ),
        (6, lambda: {"document_ids": tokens(1, 6)}, "document_ids has shape (1, 6), not (2, 6)"),
        (
            6,
            lambda: {"document_ids": tokens(2, 6), **cached()},
            "document_ids cannot be used with past_key_values",
        ),
    ],
)
def test_forward_refuses(length: int, given: Callable[[], dict[str, object]], message: str) -> None:
    model = GPT2LMHeadModel(SMALL, seed=0)
    with pytest.raises(ValueError, match=re.escape(message)):
        model(tokens(2, length), **given())
