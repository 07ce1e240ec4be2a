"""The releases of DeepSpeed that this project is made for; a start with another one is refused."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from gpt2_ds.config.errors import user_error

OLDEST, FIRST_UNTESTED = "0.19.8", "0.20"
"""As in requirements.txt. Releases before 0.19.8 compute wrong gradients or updates for some runs
(DeepSpeed #7985, #8061, #8441 are the last three), and `gpt2_ds/parallel` uses private names that
move between minor versions."""

_INSTALL = f'Install a tested one: pip install "deepspeed>={OLDEST},<{FIRST_UNTESTED}".'


def installed_deepspeed() -> str | None:
    """The release that is installed here, found without an import; None: none is."""
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return None


def check_deepspeed() -> None:
    """Refuse a DeepSpeed that this project was not tested with; none at all says so by itself.

    Raises:
        UserError: the installed release is older or newer.
    """
    installed = installed_deepspeed()
    if installed is None:
        return
    where, release = "requirements.txt: deepspeed", f"{installed} is installed"
    if _numbers(installed) < _numbers(OLDEST):
        what = f"{release}; releases before {OLDEST} compute some runs wrong without an error"
        raise user_error(where, what, _INSTALL)
    if _numbers(installed) >= _numbers(FIRST_UNTESTED):
        what = f"{release}; {FIRST_UNTESTED} and newer were not tested with this project"
        raise user_error(where, what, _INSTALL)


def _numbers(release: str) -> tuple[int, ...]:
    """The numbers of a release, to compare.

    >>> _numbers("0.19.10+cu13") > _numbers("0.19.9rc1")
    True
    """
    return tuple(int(word) for word in re.findall(r"\d+", release.partition("+")[0])[:3])
