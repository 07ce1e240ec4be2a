"""How training is spread over devices. The only package that imports deepspeed."""

import os

import torch

# DeepSpeed reads it when it is imported, and prints a warning where it has to guess.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
