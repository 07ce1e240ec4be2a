"""The sizes of a GPT-2 / GPT-3 model, in Hugging Face's and OpenAI's names."""

from __future__ import annotations

from dataclasses import dataclass, fields

from gpt2_ds.config.model_shape import ModelShape
from gpt2_ds.config.numbers import round_up


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """What fixes a model's shape and arithmetic. The defaults are GPT-2 124M without dropout.

    Args:
        vocab_size: tokens of the tokenizer; what `logits` are cut to.
        n_positions: the longest sequence the model has positions for, in tokens.
        n_embd: width of the residual stream.
        n_layer: blocks.
        n_head: attention heads a block; must divide `n_embd`.
        n_inner: width inside the MLP; None means 4 * n_embd.
        resid_pdrop: dropout on what each block adds to the residual stream, 0 to below 1.
        embd_pdrop: dropout on the sum of the embeddings.
        attn_pdrop: dropout on the attention probabilities.
        layer_norm_epsilon: added to the variance in every LayerNorm.
        initializer_range: standard deviation of the first weights.
        tie_word_embeddings: the head uses the token embedding's matrix.
        pad_vocab_to_multiple_of: rows of the embedding are rounded up to a multiple of this;
            50257 -> 50304 with 128 makes the head's matrix product fast on a GPU.
        loss_chunk_size: rows of (B*T) whose logits exist at one time in the loss; 0 = all.
        activation_checkpointing: keep only each block's input and run the block again in backward.

    Raises:
        ValueError: a size that is not positive, a probability outside [0, 1), or an `n_embd` that
            the heads do not divide.

    >>> GPT2Config(pad_vocab_to_multiple_of=128).padded_vocab_size
    50304
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    pad_vocab_to_multiple_of: int = 1
    loss_chunk_size: int = 0
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that mean nothing."""
        for name in (
            "vocab_size",
            "n_positions",
            "n_embd",
            "n_layer",
            "n_head",
            "inner_size",
            "layer_norm_epsilon",
            "initializer_range",
            "pad_vocab_to_multiple_of",
        ):
            if not getattr(self, name) > 0:
                shown = "n_inner" if name == "inner_size" else name
                raise ValueError(f"{shown} is {getattr(self, name)}. It must be above 0.")
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}. A probability of dropout is at least 0 and "
                    "below 1."
                )
        if self.loss_chunk_size < 0:
            raise ValueError(
                f"loss_chunk_size is {self.loss_chunk_size}. Give a number of rows, or 0 for all "
                "at once."
            )
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}. "
                "Every head needs the same whole width."
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head (D)."""
        return self.n_embd // self.n_head

    @property
    def inner_size(self) -> int:
        """Width inside the MLP, with the default filled in."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the token embedding and of the head (V, padding included)."""
        return round_up(self.vocab_size, self.pad_vocab_to_multiple_of)

    @property
    def shape(self) -> ModelShape:
        """The tensors that the plan takes the model to have."""
        return ModelShape(
            self.n_layer,
            self.n_embd,
            self.n_positions,
            self.padded_vocab_size,
            self.tie_word_embeddings,
        )

    @classmethod
    def from_hf(cls, config: object) -> GPT2Config:
        """The same model as a `transformers.GPT2Config`, read by attribute names.

        Args:
            config: anything with the attributes of `transformers.GPT2Config`.

        Raises:
            ValueError: it asks for arithmetic that this model does not do, which would be another
                model under the same name.
        """
        for name, implemented in (
            ("activation_function", ("gelu_new", "gelu_pytorch_tanh")),
            ("scale_attn_weights", (True,)),
            ("scale_attn_by_inverse_layer_idx", (False,)),
            ("reorder_and_upcast_attn", (False,)),
            ("add_cross_attention", (False,)),
        ):
            given = getattr(config, name, implemented[0])
            if given not in implemented:
                raise ValueError(
                    f"{name} is {given!r}. This model implements "
                    f"{' or '.join(map(repr, implemented))} only."
                )
        known = {field.name for field in fields(cls)}
        return cls(**{name: getattr(config, name) for name in known if hasattr(config, name)})
