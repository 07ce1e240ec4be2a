"""The loss in blocks, and the padded vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from gpt2_ds.model import GPT2Config, GPT2LMHeadModel, LMHead

ROWS = 60


def config(
    vocab_size: int = 101, multiple: int = 1, chunk: int = 0, tied: bool = True
) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        pad_vocab_to_multiple_of=multiple,
        loss_chunk_size=chunk,
        tie_word_embeddings=tied,
    )


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 101, (3, ROWS // 3), generator=generator)
    targets = torch.randint(0, 101, (3, ROWS // 3), generator=generator)
    targets[0, 3:9] = -100
    targets[2] = -100  # whole blocks without a target
    return x, targets


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 20, 59, 60, 1000])
def test_loss_in_blocks_is_the_plain_loss(chunk: int, tied: bool, multiple: int) -> None:
    x, targets = inputs()
    plain = GPT2LMHeadModel(config(multiple=multiple, tied=tied), seed=0)
    chunked = GPT2LMHeadModel(config(multiple=multiple, tied=tied, chunk=chunk), seed=0)
    # The reference uses torch's own mean over the logits that callers get.
    expected = F.cross_entropy(plain(x).logits.flatten(0, 1), targets.flatten())
    found = chunked(x, shift_labels=targets, return_logits=False)
    assert found.logits is None
    assert_close(found.loss, expected, rtol=0, atol=1e-6)
    assert_close(plain(x, shift_labels=targets).loss, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert_close(
            chunked(x, shift_labels=targets, return_logits=False).loss, expected, rtol=0, atol=1e-6
        )
    expected.backward()
    found.loss.backward()
    for (name, p), q in zip(plain.named_parameters(), chunked.parameters(), strict=True):
        assert_close(q.grad, p.grad, rtol=1e-5, atol=1e-6, msg=name)


def test_loss_is_computed_in_fp32_from_bf16_weights() -> None:
    x, targets = inputs()
    model = GPT2LMHeadModel(config(chunk=8), seed=0).bfloat16()
    logits = model(x).logits
    assert logits.dtype == torch.bfloat16
    expected = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    for return_logits in (True, False):
        loss = model(x, shift_labels=targets, return_logits=return_logits).loss
        assert loss.dtype == torch.float32
        assert_close(loss, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [0, 16])
def test_no_targets_at_all_give_zero_and_no_nan(chunk: int) -> None:
    x, targets = inputs()
    model = GPT2LMHeadModel(config(chunk=chunk), seed=0)
    loss = model(x, shift_labels=torch.full_like(targets, -100), return_logits=False).loss
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("chunk", [0, 16])
def test_padded_rows_change_nothing_and_get_no_gradient(chunk: int) -> None:
    x, targets = inputs()
    model = GPT2LMHeadModel(config(multiple=64, chunk=chunk), seed=0)
    with torch.no_grad():
        model.lm_head.weight[101:] = 1e3  # had they any weight in the softmax, it would show
    narrow = GPT2LMHeadModel(config(), seed=0)
    cut = {n: t[:101] if "wte" in n or "lm_head" in n else t for n, t in model.state_dict().items()}
    narrow.load_state_dict(cut)  # strict: the padding's bias is not in the state dict
    assert model(x).logits.shape[-1] == 101
    assert_close(model(x).logits, narrow(x).logits, rtol=0, atol=1e-6)
    loss = model(x, shift_labels=targets, return_logits=False).loss
    assert_close(loss, narrow(x, shift_labels=targets).loss, rtol=0, atol=1e-6)
    loss.backward()
    assert (model.lm_head.weight.grad[101:] == 0).all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_padding_follows_the_model_to_another_dtype() -> None:
    model = GPT2LMHeadModel(config(multiple=64), seed=0).bfloat16()
    x, targets = inputs()
    assert model(x, shift_labels=targets, return_logits=False).loss.isfinite()


def saved_bytes(head: LMHead, hidden: torch.Tensor, targets: torch.Tensor) -> int:
    """Bytes that the forward keeps for backward, the weight not counted."""
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        if tensor.data_ptr() != head.weight.data_ptr():
            total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        head(hidden, targets)
    return total


def test_blocks_keep_no_logits_for_backward() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(256, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 5000, (256,), generator=generator)
    plain = saved_bytes(LMHead(config(5000)), hidden, targets)
    chunked = saved_bytes(LMHead(config(5000, chunk=32)), hidden, targets)
    assert plain >= 256 * 5000 * 4  # all log-probabilities
    assert chunked <= 4 * hidden.numel() * 4


def peak_bytes(head: LMHead, folder: Path) -> int:
    """Most bytes that torch's allocator holds at once in a forward and backward over 4,096 rows."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4096, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 20000, (4096,), generator=generator)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        head(hidden, targets).backward()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    held = [0]
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held.append(held[-1] + event["args"]["Bytes"])
    return max(held)


def test_blocks_lower_the_measured_peak_of_memory(tmp_path: Path) -> None:
    logits = 4096 * 20000 * 4
    assert peak_bytes(LMHead(config(20000)), tmp_path) > 2 * logits  # and their gradient
    assert peak_bytes(LMHead(config(20000, chunk=256)), tmp_path) < logits / 4
