"""The loss of windows against torch's cross-entropy, and its mean for any number of ranks."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.reading.loader import validation_batches
from gpt2_ds.evaluation.loss import validation_loss, window_loss
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from tests.ranks import run_ranks
from tests.small_run import small_dataset

EOT = 256
T = 32
N_WINDOWS = 11  # shared evenly by neither two nor three ranks


def small_model(dropout: float = 0.0) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=257,
        n_positions=T,
        n_embd=32,
        n_layer=2,
        n_head=2,
        resid_pdrop=dropout,
        pad_vocab_to_multiple_of=64,
        initializer_range=0.2,  # so that losses differ
    )
    return GPT2LMHeadModel(config, seed=5)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 256, (4, T + 1), generator=torch.Generator().manual_seed(7))


def reference(model: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def test_it_is_cross_entropy(tokens: Tensor) -> None:
    model = small_model()
    torch.testing.assert_close(window_loss(model, tokens), reference(model, tokens))


@pytest.mark.parametrize("n_valid", [1, 2, 3, 4])
def test_only_valid_windows_count(tokens: Tensor, n_valid: int) -> None:
    model = small_model()
    expected = reference(model, tokens[:n_valid])
    torch.testing.assert_close(window_loss(model, tokens, n_valid=n_valid), expected)


@pytest.mark.parametrize("n_windows", [1, 4])
def test_no_valid_window(tokens: Tensor, n_windows: int) -> None:
    """One window at a time: the last batch of some ranks holds none that counts."""
    some = tokens[:n_windows]
    before = some.clone()
    assert torch.isfinite(window_loss(small_model(), some, n_valid=0))
    assert torch.equal(some, before)  # the caller's tokens are its own


def test_documents_in_a_window_are_as_if_apart() -> None:
    """A window of 5 + 10 + 17 input tokens; each document begins with end-of-text."""
    generator, model = torch.Generator().manual_seed(9), small_model()
    documents = [
        torch.cat([torch.tensor([EOT]), torch.randint(0, 256, (n - 1,), generator=generator)])
        for n in (5, 10, 18)
    ]
    window = torch.cat(documents)[None]  # (1, T + 1)
    apart = torch.zeros(())
    for i, document in enumerate(documents):
        following = documents[i + 1][:1] if i < 2 else document[:0]
        whole = torch.cat([document, following])[None]
        apart = apart + reference(model, whole) * (whole.size(1) - 1)
    together = window_loss(model, window, document_eot=EOT)
    torch.testing.assert_close(together, apart / T)
    assert (window_loss(model, window) - together).abs().item() > 1e-3


def test_the_mode_is_restored_and_dropout_is_off(tokens: Tensor) -> None:
    model, batches = small_model(dropout=0.5), [(tokens, 4)]
    expected = reference(small_model(), tokens).item()
    for training in (True, False):
        model.train(training)
        found = validation_loss(model, batches, torch.device("cpu"))
        assert found == pytest.approx(expected, rel=1e-6)
        assert model.training is training
    assert all(p.grad is None for p in model.parameters())


def test_batches_weigh_by_their_valid_windows(tokens: Tensor) -> None:
    model = small_model()
    batches = [(tokens, 4), (tokens[:2].flip(0), 1), (tokens[:1], 0)]
    windows = torch.cat([tokens, tokens[1:2]])
    found = validation_loss(model, batches, torch.device("cpu"))
    assert found == pytest.approx(reference(model, windows).item(), rel=1e-6)


class NoNumber(torch.nn.Module):
    """A model whose loss is no number when no target counts."""

    def forward(self, input_ids: Tensor, shift_labels: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(loss=F.cross_entropy(torch.zeros(1, 257, T), shift_labels[:1]))


def test_a_batch_without_a_valid_window_adds_nothing(tokens: Tensor) -> None:
    batches = [(tokens[:1], 1), (tokens[:1], 0)]
    found = validation_loss(NoNumber(), batches, torch.device("cpu"))
    assert found == pytest.approx(math.log(257))


def test_documents_are_kept_apart_in_validation_too(tokens: Tensor) -> None:
    model = small_model()
    tokens[:, 9] = EOT
    found = validation_loss(model, [(tokens, 4)], torch.device("cpu"), document_eot=EOT)
    assert found == pytest.approx(window_loss(model, tokens, document_eot=EOT).item(), rel=1e-6)
    assert found != pytest.approx(window_loss(model, tokens).item(), rel=1e-6)


def losses(data: Path, world_size: int) -> list[float]:
    """With one and with two windows in a batch."""
    return [
        validation_loss(
            small_model(),
            validation_batches(
                Dataset.open(data).split("validation"),
                n_windows=N_WINDOWS,
                seq_length=T,
                micro_batch_size=micro_batch_size,
                rank=rank(),
                world_size=world_size,
            ),
            torch.device("cpu"),
        )
        for micro_batch_size in (1, 2)
    ]


@pytest.mark.heavy
def test_it_is_the_same_for_any_number_of_ranks(tmp_path: Path) -> None:
    data = small_dataset(tmp_path)
    batches = validation_batches(
        Dataset.open(data).split("validation"),
        n_windows=N_WINDOWS,
        seq_length=T,
        micro_batch_size=N_WINDOWS,
        rank=0,
        world_size=1,
    )
    ((windows, n_valid),) = batches
    assert n_valid == len(windows) == N_WINDOWS
    expected = reference(small_model(), windows).item()
    found = losses(data, 1)
    for world_size in (2, 3):
        for of_rank in run_ranks(losses, world_size, tmp_path, data, world_size):
            found += of_rank
    assert found == pytest.approx([expected] * 12, rel=1e-6)
