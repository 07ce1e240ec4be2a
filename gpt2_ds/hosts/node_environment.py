"""Environment for every rank on every node, from a file instead of a command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from gpt2_ds.config.errors import Fault, UserError, user_error

NODE_ENVIRONMENT_FILE = ".gpt2_ds_env"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(
    r"TOKEN(?!IZER|S)|SECRET|PASSWORD|PASSWD|PASSPHRASE|PGPASS|CREDENTIAL|CONNECTION_STRING|"
    r"API_?KEY|_KEY(?![A-Z])",
    re.IGNORECASE,
)
_OF_THE_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")
_FILLED_IN = ("MASTER_ADDR", "MASTER_PORT")
_READ_AT_START = ("LD_", "PYTHON")


def load_node_environment(directory: Path | None = None) -> None:
    """Put what `.gpt2_ds_env` holds into this process's environment. Call it before torch.

    DeepSpeed sends a node only names that begin with a few words (NCCL, PYTHON, ...), and what its
    own `.deepspeed_env` holds is printed and shown in process lists. Every rank reads this file
    itself, so that its values appear nowhere.

    The file wins over what the process was given, so that all nodes have the same. MASTER_ADDR and
    MASTER_PORT fill in only what the launcher did not set.

    Args:
        directory: holds the file, if there is one; the working directory when None.

    Raises:
        UserError: a line is not `NAME=value`, or names what must not be set here; the file cannot
            be read, or others can read it and it holds a secret. No message shows a value.
    """
    path = (directory or Path()) / NODE_ENVIRONMENT_FILE
    try:
        text = path.read_bytes().decode()
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise user_error(
            str(path), f"cannot be read ({error.strerror})", "Make it readable, or delete it."
        ) from None
    except UnicodeDecodeError:
        raise user_error(str(path), "is not UTF-8 text", "Save it as UTF-8.") from None
    values = _values_of(path, text)
    secrets = [name for name in values if is_secret_name(name)]
    if secrets and mode & 0o077:
        raise user_error(
            str(path),
            f"holds {', '.join(secrets)}, and others may read it (mode {mode & 0o777:o})",
            f"Type chmod 600 {path}.",
        )
    _put(values)


def is_secret_name(name: str) -> bool:
    """Whether the value of a variable is one that nobody else should see.

    >>> [is_secret_name(name) for name in ("HF_TOKEN", "TOKENIZERS_PARALLELISM", "NCCL_DEBUG")]
    [True, False, False]
    >>> [is_secret_name(name) for name in ("WANDB_API_KEY", "PYTHON_KEYRING_BACKEND", "MAX_TOKENS")]
    [True, False, False]
    """
    return _SECRET.search(name) is not None


def _values_of(path: Path, text: str) -> dict[str, str]:
    """The file's variables.

    Raises:
        UserError: what is wrong with which lines; all of them.
    """
    values: dict[str, str] = {}
    faults: list[Fault] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if wrong := _wrong(name if equals else "", value, values):
            faults.append(Fault(f"{path}:{number}", *wrong))
        values[name] = value
    if faults:
        raise UserError(*faults)
    return values


def _wrong(name: str, value: str, before: Mapping[str, str]) -> tuple[str, str] | None:
    """What is wrong with a line, and the fix. The value may be a secret: it is never shown."""
    if not _NAME.fullmatch(name):
        return "is not NAME=value", "Write one variable a line, without `export` and spaces."
    if name in before:
        return f"names {name} again", "Give each variable one line."
    if name in _OF_THE_LAUNCHER:
        return f"sets {name}, which the launcher gives each rank", "Delete the line."
    if name.startswith(_READ_AT_START):
        return (
            f"sets {name}, which is read when a process starts, before this file",
            "Put it into .deepspeed_env, or into the shell's start-up file of every node.",
        )
    if value.endswith("\r") or "\0" in value:
        return f"gives {name} a value with a Windows line end or a zero byte", "Write it anew."
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return f"puts the value of {name} in quotes, which would become part of it", "Remove them."
    return None


def _put(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        if name not in _FILLED_IN or name not in os.environ:
            os.environ[name] = value
