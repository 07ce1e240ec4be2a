"""The trained tensors of the model, told once: what is counted and planned follows from them.

Counted are parameters, and with them FLOPs and MFU; planned are model states and activations.
A tensor that gpt2_ds/model/gpt2.py gets has a line here, too: a run whose model has other tensors
than these is refused at its start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from gpt2_ds.config.errors import user_error
from gpt2_ds.config.recipe import ModelSection

_NAMED_IN_A_MESSAGE = 4


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape decays, and is Muon's where it is in a block.

    Both embeddings are matrices and decay, as in nanoGPT; biases and LayerNorms do not.
    """
    return len(shape) >= 2


class TrainedTensor(NamedTuple):
    """One of the model's parameters.

    Args:
        name: the model's own; in a block without what stands before it.
        shape: torch's: of a matrix (out, in).
        kept: numbers a token that forward keeps for backward: what goes into its operation, and
            what comes out where something without parameters reads it (attention, GELU).
        statistics: fp32 numbers a token that it keeps besides: a LayerNorm's mean and deviation.
    """

    name: str
    shape: tuple[int, ...]
    kept: int = 0
    statistics: int = 0

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a GPT-2 model, and the tensors that they make.

    Args:
        n_layer: blocks.
        n_embd: width of the residual stream (C).
        n_positions: rows of the position embedding.
        vocab_rows: rows of the token embedding, the padded ones included.
        tied: the head uses the token embedding's matrix.

    >>> ModelShape(12, 768, 1024, 50257, tied=True).n_parameters
    124439808
    """

    n_layer: int
    n_embd: int
    n_positions: int
    vocab_rows: int
    tied: bool

    @classmethod
    def of(cls, model: ModelSection, vocab_rows: int) -> ModelShape:
        """A recipe's, with so many rows in the token embedding."""
        tied = model.tie_word_embeddings
        return cls(model.n_layer, model.n_embd, model.n_positions, vocab_rows, tied)

    @property
    def inner_size(self) -> int:
        """Width inside the MLP."""
        return 4 * self.n_embd

    @property
    def block(self) -> tuple[TrainedTensor, ...]:
        """The tensors of one block."""
        width, inner = self.n_embd, self.inner_size
        return (
            TrainedTensor("ln_1.weight", (width,), kept=width, statistics=2),
            TrainedTensor("ln_1.bias", (width,)),
            TrainedTensor("attn.c_attn.weight", (3 * width, width), kept=width + 3 * width),
            TrainedTensor("attn.c_attn.bias", (3 * width,)),
            TrainedTensor("attn.c_proj.weight", (width, width), kept=width),
            TrainedTensor("attn.c_proj.bias", (width,)),
            TrainedTensor("ln_2.weight", (width,), kept=width, statistics=2),
            TrainedTensor("ln_2.bias", (width,)),
            TrainedTensor("mlp.c_fc.weight", (inner, width), kept=width + inner),
            TrainedTensor("mlp.c_fc.bias", (inner,)),
            TrainedTensor("mlp.c_proj.weight", (width, inner), kept=inner),
            TrainedTensor("mlp.c_proj.bias", (width,)),
        )

    @property
    def outside(self) -> tuple[TrainedTensor, ...]:
        """The tensors outside the blocks."""
        width = self.n_embd
        tokens = (self.vocab_rows, width)
        return (
            TrainedTensor("transformer.wte.weight", tokens),
            TrainedTensor("transformer.wpe.weight", (self.n_positions, width)),
            # Its output is the head's input, and a tied head has no line of its own.
            TrainedTensor("transformer.ln_f.weight", (width,), kept=width + width),
            TrainedTensor("transformer.ln_f.bias", (width,)),
            *(() if self.tied else (TrainedTensor("lm_head.weight", tokens),)),
        )

    def named(self) -> dict[str, tuple[int, ...]]:
        """The shape of every trained tensor by its name in the model, a tied one's once."""
        outside = {tensor.name: tensor.shape for tensor in self.outside}
        return outside | {
            f"transformer.h.{layer}.{tensor.name}": tensor.shape
            for layer in range(self.n_layer)
            for tensor in self.block
        }

    @property
    def n_parameters(self) -> int:
        """Trained numbers of the whole model."""
        return sum(times * tensor.numel for tensor, times in self._tensors())

    def n_below(self, limit: int) -> int:
        """Numbers of all tensors that have fewer than `limit` of them."""
        found = ((tensor.numel, times) for tensor, times in self._tensors())
        return sum(times * numel for numel, times in found if numel < limit)

    @property
    def n_largest(self) -> int:
        """Numbers of the largest tensor."""
        return max(tensor.numel for tensor, _ in self._tensors())

    @property
    def n_block_matrices(self) -> int:
        """Numbers of all matrices of one block."""
        return sum(tensor.numel for tensor in self.block if is_matrix(tensor.shape))

    def _tensors(self) -> Iterator[tuple[TrainedTensor, int]]:
        """Each tensor, and how many times the model has it."""
        yield from ((tensor, self.n_layer) for tensor in self.block)
        yield from ((tensor, 1) for tensor in self.outside)


def check_model(described: ModelShape, model: Mapping[str, Sequence[int]]) -> None:
    """Refuse a model that has other tensors than those described here.

    Args:
        described: by the recipe.
        model: the real tensors' whole shapes by name, a tied one's once.

    Raises:
        UserError: both counts of parameters, and the tensors that differ.
    """
    expected = described.named()
    found = [
        f"{name} ({_sizes(shape)}) is not described"
        for name, shape in model.items()
        if name not in expected
    ]
    for name, shape in expected.items():
        if name not in model:
            found.append(f"{name} ({_sizes(shape)}) is not in the model")
        elif tuple(model[name]) != shape:
            found.append(f"{name} is ({_sizes(model[name])}), described as ({_sizes(shape)})")
    if not found:
        return
    named = ", ".join(found[:_NAMED_IN_A_MESSAGE])
    more = len(found) - _NAMED_IN_A_MESSAGE
    raise user_error(
        "gpt2_ds/config/model_shape.py",
        f"describes {described.n_parameters:,} parameters, and the model has "
        f"{sum(map(prod, model.values())):,}: {named}{f', and {more} more' if more > 0 else ''}",
        "Describe there the tensors that gpt2_ds/model/gpt2.py makes: memory, FLOPs and MFU follow "
        "from them.",
    )


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
