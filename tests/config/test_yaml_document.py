"""YAML is read as it was meant, and refused with the line where it is not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.config.yaml_document import parse_yaml, read_text, scalar
from tests.config.small_recipe import only_fault


@pytest.mark.parametrize(
    "word, value",
    [
        ("6e-4", 0.0006),
        ("6E-4", 0.0006),
        ("300e9", 300_000_000_000),
        ("1.5e3", 1500),
        ("2.5e3", 2500),
        ("1e23", 10**23),  # 1e23 as a float is 99999999999999991611392
        ("1_048_576", 1_048_576),
        ("1e-8", 1e-8),
        (".5", 0.5),
        ("5.", 5.0),
        ("1.0", 1.0),
        ("-3", -3),
        ("+3", 3),
        ("-1.5e-3", -0.0015),
        ("12345678901234567.5e0", 12345678901234567.5),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_words_with_a_value_of_their_own(word: str, value: object) -> None:
    assert scalar(word) == value
    assert type(scalar(word)) is type(value)


@pytest.mark.parametrize(
    "word",
    [
        "no",
        "on",
        "yes",
        "off",
        "True",
        "y",
        "1:30",
        "0x10",
        "0o7",
        "nan",
        ".nan",
        ".inf",
        "inf",
        "2024-01-01",
        "1e",
        "e5",
        "1.2.3",
        "--1",
        "5e-",
        "_1",
    ],
)
def test_other_words_are_text(word: str) -> None:
    assert scalar(word) == word
    assert parse_yaml(f"key: {word}", "f")[0] == {"key": word}


def test_a_leading_zero_is_no_octal() -> None:
    assert scalar("010") == 10


@pytest.mark.parametrize(
    "word, value",
    [
        ("1e999999", math.inf),
        ("1e99999999999999999999", math.inf),
        ("-1e99999999999999999999", -math.inf),
        ("1e310", math.inf),
        ("1e-99999999999999999999", 0.0),
        ("-1e-999999", 0.0),
    ],
)
def test_a_huge_exponent_fills_no_memory(word: str, value: float) -> None:
    start = time.process_time()
    assert scalar(word) == value
    assert time.process_time() - start < 0.5


def test_a_number_of_thousands_of_digits_is_text() -> None:
    assert scalar("9" * 5000) == "9" * 5000


@pytest.mark.parametrize("text", ["'6e-4'", '"6e-4"', "'true'", "'1'", "|-\n  1"])
def test_a_quoted_word_is_text(text: str) -> None:
    assert isinstance(parse_yaml(f"key: {text}", "f")[0]["key"], str)


@given(st.integers(min_value=-(10**200), max_value=10**200))
def test_integers_come_back(number: int) -> None:
    assert scalar(str(number)) == number
    assert scalar(f"{number:_}") == number
    assert scalar(f"{number}e3") == (number * 1000 or 0.0)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_come_back(number: float) -> None:
    read = scalar(repr(number))
    assert isinstance(read, int | float)
    assert float(read) == number


@given(st.text(alphabet="0123456789eE+-._ax", max_size=30))
def test_no_word_is_refused(word: str) -> None:
    assert isinstance(scalar(word), int | float | str | None)


def test_lines_of_keys() -> None:
    values, lines = parse_yaml("a:\n  b: 1\n  c: [1, 2]\n\nd: 2", "f")
    assert values == {"a": {"b": 1, "c": [1, 2]}, "d": 2}
    assert lines == {("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("d",): 5}


def test_an_empty_file_is_an_empty_mapping() -> None:
    assert parse_yaml("# nothing", "f") == ({}, {})


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: 2\na: 3", "f: a: given twice, on lines 1 and 3. Remove one of them."),
        ("s:\n  a: 1\n  a: 2", "f: s.a: given twice, on lines 2 and 3. Remove one of them."),
        ("s: [{a: 1, a: 2}]", "f: s.0.a: given twice, on lines 1 and 1. Remove one of them."),
        ("? [1]\n: 2", "f:1: this key is a list or a mapping. Name it."),
        ("x: 1\n? {a: 1}\n: 2", "f:2: this key is a list or a mapping. Name it."),
        ("- 1\n- 2", "f: not a mapping of keys to values. Write `section:` lines."),
        ("word", "f: not a mapping of keys to values. Write `section:` lines."),
        ("a: 1\nb: [", "f:2: not YAML: expected the node content, but found '<stream end>'"),
        ("a:\n\tb: 1", "f:2: not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2", "f:2: not YAML: but found another document"),
        ("a: b: c", "f:1: not YAML: mapping values are not allowed here"),
        ("a: 1\x00", "f: not YAML: character 5 is '\\x00'. Save it as UTF-8 text."),
    ],
)
def test_refusals(text: str, message: str) -> None:
    assert only_fault(lambda: parse_yaml(text, "f")).startswith(message)


@pytest.mark.parametrize("text", ["b: &x 1", "b: *x", "b: !!int '1'", "b: !x 1", "<<: *x"])
def test_anchors_aliases_and_tags_are_refused(text: str) -> None:
    message = only_fault(lambda: parse_yaml(f"a: 1\n{text}", "f"))
    assert message.startswith("f:2: anchors (&), aliases (*) and tags (!) are not read here.")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10_000,
        "{a: " * 10_000,
        "a: " + "[" * 900 + "]" * 900,
        "- " * 500,
        "\n".join(" " * depth + "a:" for depth in range(300)),
    ],
    ids=["[", "{", "[]", "-", "blocks"],
)
def test_deep_nesting_is_refused_and_fast(text: str) -> None:
    start = time.process_time()
    assert "nested too deep to be a recipe. Flatten it." in only_fault(
        lambda: parse_yaml(text, "f")
    )
    assert time.process_time() - start < 5  # PyYAML alone takes 12 s for the first


def test_forty_levels_are_read() -> None:
    parse_yaml("a: " + "[" * 40 + "]" * 40, "f")


@pytest.mark.parametrize(
    "content, what",
    [
        (bytes(range(128, 256)), "not UTF-8 text at byte 0. Save it as UTF-8."),
        (b"seed: 1\n\xff", "not UTF-8 text at byte 8. Save it as UTF-8."),
        ("seed: 1".encode("utf-16"), "not UTF-8 text at byte 0. Save it as UTF-8."),
    ],
)
def test_a_file_that_is_not_utf8(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    assert only_fault(lambda: read_text(path, "recipe", ".yaml")) == f"{path}: {what}"


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("\ufeffseed: 1".encode())
    assert read_text(path, "recipe", ".yaml") == "seed: 1"


def test_a_missing_file_names_those_beside_it(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yaml", "c.json"):
        (tmp_path / name).touch()
    path = tmp_path / "x.yaml"
    assert only_fault(lambda: read_text(path, "recipe", ".yaml")) == (
        f"{path}: no such recipe (from {Path.cwd()}). "
        f"In that folder: {tmp_path / 'a.yaml'}, {tmp_path / 'b.yaml'}."
    )
    lost = tmp_path / "no" / "x.yaml"
    assert only_fault(lambda: read_text(lost, "recipe", ".yaml")).endswith("Check the path.")


@pytest.mark.parametrize(
    "name, why",
    [
        (lambda folder: folder, "Is a directory"),
        (lambda folder: folder / ("x" * 300), "File name too long"),
        (lambda folder: folder / "a\0b", "embedded null byte"),
    ],
)
def test_what_is_no_file(tmp_path: Path, name: Callable[[Path], Path], why: str) -> None:
    path = name(tmp_path)
    message = only_fault(lambda: read_text(path, "template", ".json"))
    assert message == f"{path}: cannot be read: {why}. Name a readable template file."
