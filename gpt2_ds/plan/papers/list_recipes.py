"""`plan.py list`: what each recipe trains, and the work that is in it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from gpt2_ds.config.derive import derive
from gpt2_ds.config.errors import EXIT_DONE, nearest, user_error
from gpt2_ds.config.model_shape import ModelShape
from gpt2_ds.config.recipe_file import load_recipe
from gpt2_ds.plan.flops import PEAK_BF16_FLOPS, flops_per_token, peak_bf16_flops
from gpt2_ds.plan.printing import table

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
_DAY_SECONDS = 86_400
_HEAD = ("recipe", "parameters", "unpadded", "tokens", "steps", "FLOPs", "GPU-days")


@dataclass(frozen=True)
class Listed:
    """One recipe.

    Args:
        name: its file's.
        n_parameters: trained numbers, the padded rows of the embedding included.
        n_unpadded: the same without those rows: what papers count.
        tokens: length of the run.
        steps: optimizer steps.
        flops: forward and backward of all tokens; recomputed activations do not count.
    """

    name: str
    n_parameters: int
    n_unpadded: int
    tokens: int
    steps: int
    flops: int

    def gpu_days(self, peak_flops: float, mfu: float) -> float:
        """On one GPU of so many FLOP/s at best, of which it does this share."""
        return self.flops / (peak_flops * mfu * _DAY_SECONDS)


def add_arguments(parser: ArgumentParser) -> None:
    """Of `list`."""
    gpus = ", ".join(PEAK_BF16_FLOPS)
    parser.add_argument("--gpu", default="H100", metavar="NAME", help=f"one of: {gpus} (H100)")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of its peak, 0-1 (0.4)")


def list_recipes(args: Namespace) -> int:
    """Print all of recipes/, the smallest first.

    Raises:
        UserError: an unknown GPU, a share that is not between 0 and 1, or a wrong recipe.
    """
    peak = peak_bf16_flops(args.gpu)
    if peak is None:
        raise user_error(f"--gpu {args.gpu}", "not known", nearest(args.gpu, PEAK_BF16_FLOPS))
    if not 0 < args.mfu <= 1:
        raise user_error(
            f"--mfu {args.mfu}", "is not a share of the peak", "Give 0.4, for example."
        )
    found = sorted(map(listed, RECIPES.glob("*.yaml")), key=lambda recipe: recipe.flops)
    rows = [_HEAD, *(_row(recipe, recipe.gpu_days(peak, args.mfu)) for recipe in found)]
    print(table(rows, numbers=True))
    print("\nFLOPs: 6 parameters + 12 n_layer n_embd seq_length a token (PaLM, appendix B).")
    speed = f"{peak / 1e12:g} TFLOP/s in bf16"
    print(f"GPU-days: on {args.gpu}, {speed}, at an assumed MFU of {args.mfu:g}.")
    return EXIT_DONE


def listed(path: Path) -> Listed:
    """What follows from a recipe, whatever trains it.

    Raises:
        UserError: as `load_recipe` and `derive`.
    """
    loaded = load_recipe(path)
    recipe, derived = loaded.recipe, derive(loaded, 1)
    model, tokens = recipe.model, recipe.schedule.total_tokens
    a_token = flops_per_token(
        derived.n_parameters, model.n_layer, model.n_embd, recipe.data.seq_length
    )
    return Listed(
        name=loaded.name,
        n_parameters=derived.n_parameters,
        n_unpadded=ModelShape.of(model, derived.vocab_size).n_parameters,
        tokens=tokens,
        steps=derived.steps,
        flops=tokens * a_token,
    )


def _row(recipe: Listed, days: float) -> tuple[str, ...]:
    return (
        recipe.name,
        f"{recipe.n_parameters:,}",
        f"{recipe.n_unpadded:,}",
        f"{recipe.tokens:,}",
        f"{recipe.steps:,}",
        f"{recipe.flops:.2e}",
        f"{days:,.0f}" if days >= 100 else f"{days:.2g}" if days >= 0.01 else "< 0.01",
    )
