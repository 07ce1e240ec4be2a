"""What is trained: GPT-2 / GPT-3 as one plain torch module.

Shape letters, used in the comments after each change of shape:

    B  micro-batch, in sequences        H  attention heads (those present on this rank)
    T  sequence length, in tokens       D  width of one head, C / H
    C  n_embd, the residual stream      V  vocabulary, padding included

This package imports torch and nothing that trains: no DeepSpeed, no transformers.
"""

from gpt2_ds.model.config import GPT2Config
from gpt2_ds.model.gpt2 import (
    GPT2MLP,
    CausalLMOutput,
    GPT2Attention,
    GPT2Block,
    GPT2LMHeadModel,
    GPT2Model,
    KeyValue,
)
from gpt2_ds.model.lm_head import IGNORE_INDEX, LMHead

__all__ = [
    "GPT2MLP",
    "IGNORE_INDEX",
    "CausalLMOutput",
    "GPT2Attention",
    "GPT2Block",
    "GPT2Config",
    "GPT2LMHeadModel",
    "GPT2Model",
    "KeyValue",
    "LMHead",
]
