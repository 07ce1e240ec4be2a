"""The two files behind tiktoken's `gpt2`: found, checked or fetched before tiktoken looks.

tiktoken 0.14 downloads without a timeout, so it hangs where a firewall drops packets, and deletes
a cached file whose hash is wrong without a word. Both are prevented by never letting it do either.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from pathlib import Path

from gpt2_ds.config.errors import user_error

_FOLDER = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
# Address -> sha256 of the content, both as in tiktoken_ext/openai_public.py.
FILES = {
    f"{_FOLDER}/vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    f"{_FOLDER}/encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
DOWNLOAD_TIMEOUT_SECONDS = 10.0


def cached_name(address: str) -> str:
    """The name under which tiktoken caches what is at `address`.

    >>> [cached_name(address)[:8] for address in FILES]
    ['6d1cbeee', '6c7ea1a7']
    """
    return hashlib.sha1(address.encode()).hexdigest()


def cache_directory() -> Path:
    """Where tiktoken will look.

    Raises:
        UserError: its cache is switched off.
    """
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if (value := os.environ.get(variable)) is not None:
            if value:
                return Path(value)
            raise user_error(
                f"environment: {variable}",
                "empty, which switches tiktoken's cache off",
                f"Unset {variable}, or set it to a folder.",
            )
    return Path(tempfile.gettempdir()) / "data-gym-cache"


def require_gpt2_ranks() -> None:
    """Make sure that tiktoken finds both files of `gpt2` in its cache.

    Raises:
        UserError: a cached file is not the published one, or a file is not cached and cannot be
            downloaded; says which files to put where.
    """
    directory = cache_directory()
    for address, sha256 in FILES.items():
        path = directory / cached_name(address)
        if path.is_file():
            if (got := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
                raise user_error(
                    str(path),
                    f"not the published {address.rpartition('/')[2]}: sha256 {got}, "
                    f"expected {sha256}",
                    f"Delete it and try again, or replace it by {address}.",
                )
            continue
        try:
            data = _download(address, sha256)
            directory.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            part.write_bytes(data)
            part.replace(path)
        except OSError as error:
            files = " and ".join(f"{address} as {cached_name(address)}" for address in FILES)
            raise user_error(
                "tokenizer gpt2",
                f"{address.rpartition('/')[2]} is not in {directory}, and fetching it there "
                f"failed: {error}",
                f"Where there is a network, download {files} into one folder, bring it here and "
                "set TIKTOKEN_CACHE_DIR to it; or use --tokenizer bytes.",
            ) from error


def _download(address: str, sha256: str) -> bytes:
    with urllib.request.urlopen(address, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
        data: bytes = response.read()
    if (got := hashlib.sha256(data).hexdigest()) != sha256:
        raise OSError(f"{address} sent {len(data)} bytes with sha256 {got}, expected {sha256}")
    return data
