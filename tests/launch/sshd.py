"""An sshd of the tests' own: keys, what its configuration always says, and an ssh that knows it."""

from __future__ import annotations

import subprocess
from pathlib import Path

# HOME: no start-up file of the user's shell: pyenv's, killed in a login, leaves a lock behind.
_CONFIGURATION = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
PasswordAuthentication no
StrictModes no
UsePAM no
SetEnv HOME={folder}
"""


def write_keys(folder: Path) -> None:
    """`host_key` and `user_key`, with their public halves."""
    for name in ("host_key", "user_key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True)


def write_sshd_configuration(folder: Path, own: str) -> None:
    """`sshd.conf`: who has `user_key` may log in.

    Args:
        folder: holds the keys.
        own: lines of this one.
    """
    (folder / "sshd.conf").write_text(own + _CONFIGURATION.format(folder=folder))


def write_ssh(folder: Path, ssh: str, programs: Path) -> None:
    """An `ssh` for the PATH that reads `ssh.conf`, and no configuration of the user's.

    Args:
        folder: holds `ssh.conf`.
        ssh: the real one.
        programs: is made.
    """
    programs.mkdir()
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {folder}/ssh.conf "$@"\n')
    (programs / "ssh").chmod(0o755)
