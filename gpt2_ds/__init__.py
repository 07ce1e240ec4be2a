"""Pretrain GPT-2 and GPT-3 from scratch with DeepSpeed.

Imports point one way: launch -> train -> {parallel, evaluation, plan, data} -> model -> config.
"""
