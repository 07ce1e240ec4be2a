"""From a recipe file and `--set` to a checked `Recipe`, with the origin of every value."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gpt2_ds.config.errors import Fault, UserError, nearest, user_error
from gpt2_ds.config.recipe import AnySchedule, Recipe, Schedule
from gpt2_ds.config.section import ABSENT, STORED
from gpt2_ds.config.twin import twin_values
from gpt2_ds.config.yaml_document import parse_yaml, read_text, scalar


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe and where each value came from.

    Args:
        recipe: the values.
        file: the file, as the user named it.
        origins: key path ("model.n_head") to "recipes/x.yaml:12", "--set" or "--twin"; a key that
            is absent has its default.
        twin: it is the small twin of the file's.
    """

    recipe: Recipe
    file: str
    origins: dict[str, str]
    twin: bool = False

    @property
    def name(self) -> str:
        """The recipe's name: the file's, without its ending; a twin's says so."""
        return Path(self.file).stem + ("_twin" if self.twin else "")

    def where(self, key: str) -> str:
        """How a message names `key`: *file: key*, or *--set: key* for an override."""
        return f"{'--set' if _is_override(key, self.origins) else self.file}: {key}"

    def origin(self, key: str) -> str:
        """Where the value of `key` came from, for a listing."""
        return "--set" if _is_override(key, self.origins) else self.origins.get(key, "default")


def load_recipe(
    path: Path, overrides: Sequence[str] = (), *, twin_ranks: int | None = None
) -> LoadedRecipe:
    """Read and check a recipe.

    Args:
        path: a YAML file.
        overrides: `section.key=value` words, each with the same rules as the file.
        twin_ranks: make it small first, for so many ranks (`twin_values`); the overrides change
            the twin. None: leave it as it is.

    Raises:
        UserError: every mistake of the file and the overrides at once.
    """
    file = str(path)
    values, lines = parse_yaml(read_text(path, "recipe", ".yaml"), file)
    origins = {".".join(key): f"{file}:{line}" for key, line in lines.items()}
    if twin_ranks is not None:
        small = twin_values(load_recipe(path).recipe, twin_ranks)
        before = dict(flatten(values))
        origins |= {
            key: "--twin" for key, value in flatten(small) if before.get(key, value) != value
        }
        values = small
    faults: list[Fault] = []
    for override in overrides:
        try:
            _apply_override(values, origins, override)
        except UserError as error:
            faults.extend(error.faults)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        for detail in error.errors():
            fault = fault_of(detail, Recipe, file, origins)
            if fault not in faults:
                faults.append(fault)
    if faults:
        raise UserError(*faults)
    return LoadedRecipe(recipe, file, origins, twin_ranks is not None)


def load_stored(path: Path) -> LoadedRecipe:
    """`parse_stored` of a recipe.yaml in a run directory or a checkpoint."""
    return parse_stored(read_text(path, "recipe", ".yaml"), str(path))


def parse_stored(text: str, file: str) -> LoadedRecipe:
    """The recipe that a run wrote down.

    A key that came after the run began has the value it was introduced with, never today's default.

    Args:
        text: of the recipe.yaml.
        file: its name, for messages.

    Raises:
        UserError: it is damaged, or of a version that knew other keys.
    """
    values, lines = parse_yaml(text, file)
    origins = {".".join(key): f"{file}:{line}" for key, line in lines.items()}
    try:
        return LoadedRecipe(Recipe.model_validate(values, context=STORED), file, origins)
    except ValidationError as error:
        raise UserError(*(_stored_fault(detail, file) for detail in error.errors())) from None


def _stored_fault(detail: ErrorDetails, file: str) -> Fault:
    fault = fault_of(detail, Recipe, file, {})
    if detail["type"] != "extra_forbidden":
        return fault
    what = f"is {_shown(detail['input'])}, and this version knows no such key"
    fix = "Use the version that wrote it: environment.json beside it has the commit."
    return Fault(fault.where, what, fix)


def _apply_override(values: dict[str, Any], origins: dict[str, str], override: str) -> None:
    """Put one `section.key=value` into the parsed file."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(part.isidentifier() for part in key.split(".")):
        raise user_error(
            f"--set {override}", "not of the form section.key=value", "For example: --set seed=2."
        )
    try:
        parsed, _ = parse_yaml(f"value: {text.strip()}", "")
    except UserError as error:
        fix = f"Quote text: --set '{key}=\"...\"'."
        raise user_error(f"--set {key}", error.faults[0].what, fix) from None
    if set(parsed) != {"value"}:
        raise user_error(f"--set {key}", "more than one value", "Give one: --set key=value.")
    *sections, last = key.split(".")
    target = values
    for depth, section in enumerate(sections):
        if target.get(section) is None:
            target[section] = {}
        inner = target[section]
        if not isinstance(inner, dict):
            here = ".".join(sections[: depth + 1])
            raise user_error(
                f"--set {key}", f"{here} is a value, not a section", f"Set {here} itself."
            )
        target = inner
    target[last] = parsed["value"]
    origins[key] = "--set"


def fault_of(
    detail: ErrorDetails, schema: type[BaseModel], file: str, origins: dict[str, str]
) -> Fault:
    """One of pydantic's findings in this project's words."""
    kind, given = detail["type"], _shown(detail["input"])
    if detail["input"] is ABSENT:
        kind = "missing"
    path, model, field = _locate(detail["loc"], schema)
    key = ".".join([*path, "name"] if kind.startswith("union_tag") else path)
    where = f"{'--set' if _is_override(key, origins) else file}: {key}"
    meaning = f"It is: {_one_line(field.description)}" if field and field.description else ""
    if kind == "extra_forbidden" and model and issubclass(model, Schedule):
        shapes = {_literals(m.model_fields)[0]: m for m in _models_of(AnySchedule)}
        others = [str(name) for name, shape in shapes.items() if path[-1] in shape.model_fields]
        if others:
            return Fault(
                where,
                f"no key of a {_literals(model.model_fields)[0]} schedule",
                f"Remove it, or set schedule.name to {' or '.join(others)}.",
            )
    if kind == "extra_forbidden":
        return Fault(where, "no such key", nearest(path[-1], _names(model)))
    if kind == "missing":
        return Fault(where, "missing", f"Add it. {meaning}".strip())
    if kind == "union_tag_not_found":
        return Fault(where, "missing", "Known here: constant, cosine, wsd.")
    if kind == "union_tag_invalid":
        tags = detail["ctx"]["expected_tags"].replace("'", "")
        name = _shown(detail["input"]["name"])
        return Fault(where, f"no such schedule: {name}", f"Known here: {tags}.")
    if kind in ("model_type", "model_attributes_type"):
        return Fault(where, f"is {given}, not a section", "Give it its keys.")
    wanted = detail["msg"].partition(" should ")[2].removesuffix(f", not {_length(detail)}")
    for theirs, ours in _WORDS.items():
        wanted = wanted.replace(theirs, ours)
    return Fault(where, f"is {given}, must {wanted}", meaning or "Change it.")


_WORDS = {
    "a valid integer": "an integer",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid ": "a ",
    " after validation": "",
}


def _length(detail: ErrorDetails) -> object:
    return detail.get("ctx", {}).get("actual_length")


def _shown(value: object) -> str:
    """A value as a user writes it, cut to a readable length."""
    if value is None:
        return "empty"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def _is_override(key: str, origins: dict[str, str]) -> bool:
    """Whether --set gave `key`, a section around it, or all there is below it."""
    below = [origin for known, origin in origins.items() if known.startswith(f"{key}.")]
    made = key not in origins and bool(below) and set(below) == {"--set"}
    return made or any(origins.get(prefix) == "--set" for prefix in _prefixes(key))


def _prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join(parts[:n]) for n in range(len(parts), 0, -1))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _names(model: type[BaseModel] | None) -> list[str]:
    return list(model.model_fields) if model else []


def _models_of(annotation: object) -> list[type[BaseModel]]:
    """The schema classes inside an annotation: itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [m for a in typing.get_args(annotation) for m in _models_of(a)]
    return []


def _item_models(annotation: object) -> list[type[BaseModel]]:
    """The schema classes of what is in a list or a mapping; none for any other annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (dict, list):
        return _models_of(arguments[-1])
    if origin in (typing.Union, types.UnionType):
        return [m for each in arguments for m in _item_models(each)]
    return []


def _locate(
    loc: tuple[int | str, ...], schema: type[BaseModel]
) -> tuple[list[str], type[BaseModel] | None, FieldInfo | None]:
    """Key path, enclosing schema and field of a finding; a union's tag is no part of the path."""
    path: list[str] = []
    model: type[BaseModel] | None = schema
    field: FieldInfo | None = None
    candidates = [schema]
    inner: list[type[BaseModel]] = []
    for step in loc:
        tagged = [
            m for m in candidates if len(candidates) > 1 and step in _literals(m.model_fields)
        ]
        if tagged:
            candidates, model = tagged, tagged[0]
            continue
        path.append(str(step))
        if inner:  # a name in a mapping of sections, or a number in a list of them
            candidates, inner = inner, []
            continue
        model = candidates[0] if candidates else model
        field = model.model_fields.get(str(step)) if model and candidates else field
        inner = _item_models(field.annotation) if field and candidates else []
        candidates = _models_of(field.annotation) if field and candidates else []
    return path, model, field


def _literals(fields: dict[str, FieldInfo]) -> tuple[object, ...]:
    return typing.get_args(fields["name"].annotation) if "name" in fields else ()


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Key paths and values of nested sections, in order.

    >>> dict(flatten({"a": {"b": 1}, "c": [2]}))
    {'a.b': 1, 'c': [2]}
    """
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _PlainDumper(yaml.SafeDumper):
    """Writes floats and text so that `parse_yaml` and any YAML reader give the same back."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # 0E0 is text for PyYAML, which leaves it bare, and a number for `parse_yaml`.
    style = None if isinstance(scalar(value), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_PlainDumper.add_representer(float, _represent_float)
_PlainDumper.add_representer(str, _represent_text)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every value written, readable by `load_recipe`."""
    return yaml.dump(
        recipe.model_dump(), Dumper=_PlainDumper, sort_keys=False, default_flow_style=None
    )
