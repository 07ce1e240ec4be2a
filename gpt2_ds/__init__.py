"""Pretrain GPT-2 and GPT-3 from scratch with DeepSpeed.

Imports point one way: launch -> train -> {parallel, evaluation, plan, data} -> model -> config.
"""

import os

# Read by OpenMP when torch loads it. By default its threads spin while they wait, and a training
# step on a CPU that does anything else beside takes four times as long (torch 2.13, two cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
