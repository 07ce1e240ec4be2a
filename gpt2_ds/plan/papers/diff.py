"""`plan.py diff`: where a recipe leaves its paper, and why."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from gpt2_ds.config.errors import EXIT_DONE, nearest, user_error
from gpt2_ds.config.recipe_file import LoadedRecipe, flatten, load_recipe
from gpt2_ds.config.yaml_document import read_text
from gpt2_ds.plan.papers.list_recipes import RECIPES
from gpt2_ds.plan.papers.paper import PAPERS, Paper
from gpt2_ds.plan.printing import table

_HEAD = ("key", "paper", "source", "here", "why (the comment beside it)")


def add_arguments(parser: ArgumentParser) -> None:
    """Of `diff`."""
    add = parser.add_argument
    add("recipe", help="a file, or the name of one in recipes/: gpt3_1.3b")
    add("against", choices=["paper"], metavar="paper", help="what is printed in its paper")
    text = "another value for a key of the recipe; may be given several times"
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help=text)


def diff(args: Namespace) -> int:
    """Print each deviation."""
    file = recipe_file(args.recipe)
    paper = paper_of(file.stem)
    loaded = load_recipe(file, args.set)
    print(f"{loaded.name} and {paper.title}, {paper.address}\n")
    print(table([_HEAD, *deviations(loaded, paper)]))
    others = sum(value.agrees(_values(loaded).get(key)) for key, value in paper.values.items())
    print(f"\nAs in the paper: {others} more values.")
    return EXIT_DONE


def recipe_file(word: str) -> Path:
    """The file that `word` means: a path, or a name in recipes/.

    Raises:
        UserError: a name that recipes/ does not hold.
    """
    if word.endswith(".yaml"):
        return Path(word)
    known = [path.stem for path in RECIPES.glob("*.yaml")]
    if word not in known:
        raise user_error(f"diff {word}", "no recipe of this name in recipes/", nearest(word, known))
    return RECIPES / f"{word}.yaml"


def paper_of(name: str) -> Paper:
    """The paper of a recipe, or of a copy of it: gpt3_1.3b_mine is compared with gpt3_1.3b's.

    Raises:
        UserError: the name begins with none that has a paper.
    """
    known = [recipe for recipe in PAPERS if name == recipe or name.startswith(f"{recipe}_")]
    if not known:
        fix = f"Its name must be one of these, or begin with it and _: {', '.join(PAPERS)}."
        raise user_error(f"diff {name}", "no paper is known for it", fix)
    return PAPERS[known[0]]


def deviations(loaded: LoadedRecipe, paper: Paper) -> Iterator[tuple[str, str, str, str, str]]:
    """Of each: the key, the paper's value and its source, the recipe's, and why it differs."""
    values, lines = _values(loaded), _lines(loaded)
    for key, published in paper.values.items():
        ours = values.get(key)
        if not published.agrees(ours):
            why = _reason(loaded.origin(key), lines)
            yield key, published.text, published.source, _shown(ours), why
    for apart in paper.apart:
        yield apart.what, apart.published.text, apart.published.source, apart.ours, apart.why


def _values(loaded: LoadedRecipe) -> dict[str, object]:
    return dict(flatten(loaded.recipe.model_dump()))


def _lines(loaded: LoadedRecipe) -> list[str]:
    return read_text(Path(loaded.file), "recipe", ".yaml").splitlines()


def _reason(origin: str, lines: list[str]) -> str:
    """The comment beside the key; where there is none, the place that gave the value."""
    _, _, number = origin.rpartition(":")
    comment = lines[int(number) - 1].partition(" # ")[2] if number.isdigit() else ""
    return comment.strip() or f"({origin})"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value is None or isinstance(value, bool):
        return {None: "not set", True: "true", False: "false"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)
