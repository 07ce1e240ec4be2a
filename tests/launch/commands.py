"""Run this project's commands as a user would, in a copy of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

_TOOLS = ("bash", "sh", "env", "cat", "uname", "hostname", "sleep", "ls", "git")
# Whoever tries is written down: a program may go on after an error without a word of it.
_REFUSE_NETWORK = """
import os, socket
def guard(connect):
    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            if not str(address[0]).startswith(("127.", "::1", "::ffff:127.", "localhost")):
                with open(os.environ["NETWORK_ATTEMPTS"], "a") as file:
                    file.write(f"{address}\\n")
                raise OSError(f"a connection to {address} was tried")
        return connect(self, address)
    return guarded
socket.socket.connect = guard(socket.socket.connect)
socket.socket.connect_ex = guard(socket.socket.connect_ex)
"""


def copy_of_repository(folder: Path) -> Path:
    """The files that a clone would have, uncommitted changes included."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in names:
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder


def bare_environment(folder: Path) -> dict[str, str]:
    """No compiler on the PATH, no network but loopback, no compiled op at hand.

    Addresses that were tried are written to the file `network_attempts` in `folder`.
    """
    tools, site = folder / "bin", folder / "site"
    tools.mkdir(parents=True)
    site.mkdir()
    for name in _TOOLS:
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    # Not links: a link to python would lose its virtual environment.
    for name in ("python", "python3"):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for name in ("deepspeed", "tensorboard"):
        script = Path(sys.executable).parent / name
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    for tool in ("python", "python3", "deepspeed", "tensorboard"):
        (tools / tool).chmod(0o755)
    (site / "sitecustomize.py").write_text(_REFUSE_NETWORK)
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    return kept | {
        "PATH": str(tools),
        "PYTHONPATH": str(site),
        "NETWORK_ATTEMPTS": str(folder / "network_attempts"),
        "CXX": "/nonexistent/c++",
        "CC": "/nonexistent/cc",
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
    }


def run_command(
    command: str, folder: Path, environment: dict[str, str], *, timeout: float = 1800
) -> subprocess.CompletedProcess[str]:
    """One line of shell in `folder`, as a user would paste it."""
    return subprocess.run(
        [shutil.which("bash") or "bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
