"""Pretrain GPT-2 and GPT-3 from scratch with DeepSpeed.

Imports point one way: launch -> train -> {parallel, evaluation, plan, data} -> model -> config.
"""

import os

# Read by OpenMP (libgomp) when torch loads it: how long its threads spin before they sleep. With
# the default of 300,000, one other busy process makes a training step on two cores four times as
# long; with this, twice. Without other processes it costs a sixth (torch 2.13).
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# Where a rank dies, torch's C++ parts print pages of their own stacks around the message that says
# which one it was.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
