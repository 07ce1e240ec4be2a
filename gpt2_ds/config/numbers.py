"""Whole numbers that divide, and how a message names them."""

from __future__ import annotations

from math import isqrt


def divisors(number: int) -> list[int]:
    """All divisors, ascending; above 10^12 only those up to 10^6 and their counterparts.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    low = [small for small in range(1, min(isqrt(number), 10**6) + 1) if number % small == 0]
    return low + [number // small for small in reversed(low) if small * small != number]


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `number`.

    >>> round_up(50257, 64)
    50304
    """
    return -(-number // multiple) * multiple


def near_multiples(value: int, of: int, least: int = 1) -> str:
    """The multiples on both sides of `value` that are not below `least`."""
    below, above = value // of * of, round_up(max(value + 1, least), of)
    return f"{below} or {above}" if below >= least else str(above)


def counted(count: int, noun: str, plural: str = "", form: str = "") -> str:
    """A count and what is counted, for a message.

    Args:
        count: how many.
        noun: the word for one of them.
        plural: for several, where it is not the noun with an s.
        form: how the number is written; ",": with commas.

    >>> counted(1, "rank"), counted(2000, "rank"), counted(2000, "byte", form=",")
    ('1 rank', '2000 ranks', '2,000 bytes')
    >>> counted(1, "copy", "copies"), counted(0, "copy", "copies")
    ('1 copy', '0 copies')
    """
    return f"{count:{form}} {noun if count == 1 else plural or noun + 's'}"


def ranks_named(ranks: list[int]) -> str:
    """Ranks by their numbers, for a message.

    >>> ranks_named([3]), ranks_named([2, 3])
    ('rank 3', 'ranks 2, 3')
    """
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def few(values: list[int], limit: int = 24) -> str:
    """All of them for a message, or the first ones and the last."""
    text = ", ".join(map(str, values[:limit]))
    return text if len(values) <= limit else f"{text}, ... {values[-1]}"
