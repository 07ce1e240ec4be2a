"""GPT-2 and GPT-3, read from top to bottom: attention, MLP, block, stack, language model.

The arithmetic is OpenAI's (https://github.com/openai/gpt-2/blob/master/src/model.py); the names
of the parameters are Hugging Face's, each matrix being the transpose of their Conv1D's.

A weight is only ever read by calling the module that owns it: under ZeRO-3 that call is what
gathers it, and with torch.compile an attribute such as `wpe.weight[:T]` is an empty tensor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2_ds.model.config import GPT2Config
from gpt2_ds.model.initialisation import init_weights, initialised_at, residual_std
from gpt2_ds.model.lm_head import IGNORE_INDEX, LMHead, mean_over_targets, summed_cross_entropy
from gpt2_ds.model.masking import attention_allowed, document_starts

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer so far, each (B, H, T_total, D)."""


class CausalLMOutput(NamedTuple):
    """What the model returns; a tuple, so that ZeRO-3's hooks see the tensors in it.

    Attributes:
        loss: fp32 scalar, mean nats per target; None without labels.
        logits: (B, T, vocab_size); None if not asked for.
        past_key_values: one `KeyValue` a layer; None unless `use_cache`.
    """

    loss: Tensor | None
    logits: Tensor | None
    past_key_values: tuple[KeyValue, ...] | None


class GPT2Attention(nn.Module):
    """Causal self-attention of all heads.

    The number of heads is read off the output of `c_attn`, so a `c_attn` that returns only some
    of the heads (tensor parallelism) needs no change here.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.head_dim, self.attn_pdrop = config.head_dim, config.attn_pdrop
        self.c_attn = initialised_at(
            config.initializer_range, nn.Linear(config.n_embd, 3 * config.n_embd)
        )
        self.c_proj = initialised_at(residual_std(config), nn.Linear(config.n_embd, config.n_embd))

    def forward(
        self, hidden: Tensor, allowed: Tensor | None, past: KeyValue | None, use_cache: bool
    ) -> tuple[Tensor, KeyValue | None]:
        """Mix each position with those it may see.

        Args:
            hidden: (B, T, C).
            allowed: (B or 1, 1, T, T_total) bool, True = may attend; None = causal.
            past: keys and values of the earlier positions.
            use_cache: return the keys and values.
        """
        B, T, _ = hidden.shape
        q, k, v = (
            x.view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
            for x in self.c_attn(hidden).chunk(3, dim=-1)
        )
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=allowed,
            dropout_p=self.attn_pdrop if self.training else 0.0,
            # A single new position sees everything before it: no mask at all.
            is_causal=allowed is None and T > 1,
        )  # (B, H, T, D)
        mixed = mixed.transpose(1, 2).reshape(B, T, -1)  # (B, T, C)
        return self.c_proj(mixed), (k, v) if use_cache else None


class GPT2MLP(nn.Module):
    """Two matrices around the tanh form of GELU (https://arxiv.org/abs/1606.08415, section 2)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = initialised_at(
            config.initializer_range, nn.Linear(config.n_embd, config.inner_size)
        )
        self.c_proj = initialised_at(
            residual_std(config), nn.Linear(config.inner_size, config.n_embd)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        output: Tensor = self.c_proj(F.gelu(self.c_fc(hidden), approximate="tanh"))
        return output


class GPT2Block(nn.Module):
    """One layer: attention, then the MLP, each reading a normalised residual stream (pre-LN)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.resid_pdrop = config.resid_pdrop
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(
        self,
        hidden: Tensor,
        allowed: Tensor | None = None,
        past: KeyValue | None = None,
        use_cache: bool = False,
    ) -> tuple[Tensor, KeyValue | None]:
        """(B, T, C) -> (B, T, C), and this layer's keys and values if asked for."""
        mixed, present = self.attn(self.ln_1(hidden), allowed, past, use_cache)
        hidden = hidden + F.dropout(mixed, self.resid_pdrop, self.training)
        return hidden + F.dropout(self.mlp(self.ln_2(hidden)), self.resid_pdrop, self.training), (
            present
        )


class GPT2Model(nn.Module):
    """Embeddings, the stack of blocks, and the last LayerNorm."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = initialised_at(
            config.initializer_range, nn.Embedding(config.padded_vocab_size, config.n_embd)
        )
        # Half of the others, as in OpenAI's code (wpe 0.01, wte 0.02).
        self.wpe = initialised_at(
            config.initializer_range / 2, nn.Embedding(config.n_positions, config.n_embd)
        )
        self.h = nn.ModuleList(GPT2Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: tuple[KeyValue, ...] | None = None,
        use_cache: bool = False,
        document_ids: Tensor | None = None,
    ) -> tuple[Tensor, tuple[KeyValue, ...] | None]:
        """(B, T) token ids -> (B, T, C); the arguments are those of `GPT2LMHeadModel`."""
        T = input_ids.size(1)
        past_length = 0 if past_key_values is None else past_key_values[0][0].size(2)
        if document_ids is not None and past_length:
            raise ValueError("document_ids cannot be used with past_key_values: give one of them.")
        starts = None if document_ids is None else document_starts(document_ids)  # (B, T)
        if position_ids is None:
            if past_length + T > self.config.n_positions:
                raise ValueError(
                    f"the sequence has {past_length + T} tokens and the model n_positions "
                    f"{self.config.n_positions}. Shorten the sequence."
                )
            position_ids = torch.arange(past_length, past_length + T, device=input_ids.device)
            if starts is not None:
                position_ids = position_ids - starts  # (B, T)
        allowed = attention_allowed(attention_mask, starts, past_length, input_ids)

        hidden = self.wte(input_ids) + self.wpe(position_ids)  # (B, T, C)
        hidden = F.dropout(hidden, self.config.embd_pdrop, self.training)
        recompute = self.config.activation_checkpointing and self.training and not use_cache
        presents: list[KeyValue] = []
        for i, block in enumerate(self.h):
            past = None if past_key_values is None else past_key_values[i]
            if recompute and torch.is_grad_enabled():
                hidden, _ = checkpoint(block, hidden, allowed, past, use_reentrant=False)
                continue
            hidden, present = block(hidden, allowed, past, use_cache)
            if present is not None:
                presents.append(present)
        return self.ln_f(hidden), tuple(presents) if use_cache else None


class GPT2LMHeadModel(nn.Module):
    """The language model: logits of the next token, and the loss.

    Args:
        config: a `GPT2Config`, or a `transformers.GPT2Config`.
        seed: makes the first weights a function of this number alone, whatever the dtype and
            under `deepspeed.zero.Init` as well. It sets torch's global generator. None draws from
            that generator as it stands.

    Raises:
        ValueError: a `transformers.GPT2Config` that asks for what is not implemented.
    """

    def __init__(self, config: GPT2Config | object, seed: int | None = None) -> None:
        super().__init__()
        if not isinstance(config, GPT2Config):
            config = GPT2Config.from_hf(config)
        self.config = config
        self.transformer = GPT2Model(config)
        if config.tie_word_embeddings:
            self.lm_head = LMHead(config, self.transformer.wte.weight)  # unmarked: drawn once
        else:
            self.lm_head = initialised_at(config.initializer_range, LMHead(config))
        if seed is not None:
            torch.manual_seed(seed)
        # Through apply, for under zero.Init that is what gathers each module's parameters first;
        # writing to a parameter found any other way changes nothing there, without an error.
        self.apply(init_weights)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: tuple[KeyValue, ...] | None = None,
        use_cache: bool = False,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        return_logits: bool = True,
        logits_to_keep: int = 0,
    ) -> CausalLMOutput:
        """Predict every next token.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T_total) 1 = keep, 0 = padding, the cached positions included.
                Outputs at padded positions are finite and mean nothing.
            position_ids: (T,) or (B, T); by default they continue after the cache.
            past_key_values: the cache of an earlier call.
            use_cache: return the cache.
            labels: (B, T) the same tokens as `input_ids`; shifted here, -100 is ignored.
            shift_labels: (B, T) already aligned: `shift_labels[b, t]` follows `input_ids[b, t]`.
            document_ids: (B, T) a run of equal numbers is one document: attention stays inside
                it and its positions start at 0, as if it had been given alone.
            return_logits: False with labels gives the loss alone, and logits are then never held
                all at once (`GPT2Config.loss_chunk_size`).
            logits_to_keep: logits of only the last so many positions; 0 = all.

        Raises:
            ValueError: more tokens than positions, both kinds of labels, or a mask whose shape
                does not fit.
        """
        if labels is not None:
            if shift_labels is not None:
                raise ValueError("labels and shift_labels are two forms of one thing: give one.")
            shift_labels = F.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]  # (B, T)
        hidden, presents = self.transformer(
            input_ids, attention_mask, position_ids, past_key_values, use_cache, document_ids
        )  # (B, T, C)
        if shift_labels is not None and not return_logits:
            return CausalLMOutput(self.lm_head(hidden, shift_labels), None, presents)
        if shift_labels is None:
            # Slicing before the head: sampling needs the last position of a long prompt only.
            logits = self.lm_head(hidden[:, -logits_to_keep:])  # (B, T or kept, vocab_size)
            return CausalLMOutput(None, logits if return_logits else None, presents)
        logits = self.lm_head(hidden)  # (B, T, vocab_size)
        targets = shift_labels.reshape(-1)  # (B*T,)
        loss_sum = summed_cross_entropy(logits.flatten(0, 1), targets)
        loss = mean_over_targets(loss_sum, targets)
        return CausalLMOutput(loss, logits[:, -logits_to_keep:], presents)
