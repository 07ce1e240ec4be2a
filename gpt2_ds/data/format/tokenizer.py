"""Text to token ids and back; saved beside the data, so that no run needs a network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.format.gpt2_ranks import require_gpt2_ranks

if TYPE_CHECKING:
    import tiktoken

RANKS_FILE = "ranks.tiktoken"
TOKENIZER_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
# OpenAI's GPT-2 pattern, in the form tiktoken uses (same splits, faster).
GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)
# The splits of the byte tokenizer change only its speed: 64 characters at a time are 21 MB/s.
BYTES_PATTERN = r"(?s).{1,64}"
PROBES = (
    "Hello, world! I don't know 1234567 89.",
    "def f(x):\n\n    return x\t# \r\n",
    "naïve café — 日本語 🙂",
    END_OF_TEXT,
    "   \n \n",
)

Model = TypeVar("Model", bound=BaseModel)


class _Vector(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    text: str
    ids: tuple[int, ...]


class _Splitting(BaseModel):
    """What a ranks file does not say; all that is read beside a ranks file of the user's."""

    model_config = ConfigDict(strict=True, frozen=True)
    pattern: str
    special_tokens: dict[str, int]


class _Saved(_Splitting):
    """All of `tokenizer.json`. `file_sha256` is of the rest."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: str
    n_vocab: int
    eot_token: int
    sha256: str
    vectors: tuple[_Vector, ...]
    file_sha256: str = ""

    def to_bytes(self) -> bytes:
        """The file, with the hash that belongs to the rest."""
        rest = self.model_dump(mode="json", exclude={"file_sha256"})
        return _lines(rest | {"file_sha256": hashlib.sha256(_lines(rest)).hexdigest()})


def _lines(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


@dataclass(frozen=True)
class Tokenizer:
    """A byte-pair encoding with an end-of-text token.

    Args:
        name: `gpt2`, `bytes`, or the name of the ranks file it came from.
        encoding: what does the work.
        n_vocab: ids are below it.
        eot_token: goes before each document, and never comes out of text.
        sha256: of ranks, pattern and special tokens; the same one gives the same ids.
    """

    name: str
    encoding: tiktoken.Encoding
    n_vocab: int
    eot_token: int
    sha256: str

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type of a shard that holds every id: uint16 or uint32."""
        return np.dtype("<u2" if self.n_vocab <= 2**16 else "<u4")

    def encode(self, text: str) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The ids of a text. What looks like a special token is text like any other.

        Returns:
            (n_tokens,) of `dtype`.
        """
        try:
            ids = self.encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # lone surrogates: this way replaces them by U+FFFD
            ids = np.array(self.encoding.encode_ordinary(text), dtype=np.uint32)
        narrow: npt.NDArray[np.unsignedinteger[Any]] = ids.astype(self.dtype)
        return narrow

    def decode_bytes(self, ids: Sequence[int] | npt.NDArray[Any]) -> bytes:
        """The UTF-8 bytes of the ids, which may end inside a character: for streaming.

        Raises:
            UserError: an id is not in the vocabulary.
        """
        try:
            return bytes(self.encoding.decode_bytes(np.asarray(ids, dtype=np.int64).tolist()))
        except KeyError as error:
            raise user_error(
                f"tokenizer {self.name}",
                f"{error.args[0]} (the vocabulary has {self.n_vocab} tokens)",
                "Decode with the tokenizer the ids were made with.",
            ) from error

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, directory: Path) -> None:
        """Write `ranks.tiktoken` and `tokenizer.json` into `directory`, which is made if need be.

        The caller makes the directory durable: a dataset by its rename, a checkpoint by its own.
        """
        directory.mkdir(parents=True, exist_ok=True)
        (directory / RANKS_FILE).write_bytes(_ranks_text(self.encoding._mergeable_ranks))
        saved = _Saved(
            name=self.name,
            pattern=self.encoding._pat_str,
            special_tokens=self.encoding._special_tokens,
            n_vocab=self.n_vocab,
            eot_token=self.eot_token,
            sha256=self.sha256,
            vectors=tuple(
                _Vector(text=text, ids=tuple(self.encode(text).tolist())) for text in PROBES
            ),
        )
        (directory / TOKENIZER_FILE).write_bytes(saved.to_bytes())

    @classmethod
    def open(cls, directory: Path) -> Tokenizer:
        """Load what `save` wrote, and check it; needs no network.

        Raises:
            UserError: a file is missing, unreadable or not what was saved, or this tiktoken
                splits text differently from the one that saved it.
        """
        described, ranks_file = directory / TOKENIZER_FILE, directory / RANKS_FILE
        saved = _read_json(described, _Saved)
        if described.read_bytes() != saved.to_bytes():
            raise user_error(str(described), "not what was saved: damaged", "Restore it.")
        ranks = _read_ranks(ranks_file)
        # Of the bytes, before tiktoken sees them: damaged ones may end the process there.
        got = _digest(ranks_file.read_bytes(), saved.pattern, saved.special_tokens)
        if got != saved.sha256:
            what = f"the tokenizer's sha256 is {got}, and {TOKENIZER_FILE} says {saved.sha256}"
            raise user_error(str(ranks_file), what, "One of the two was changed: restore both.")
        opened = _build(saved.name, ranks, saved.pattern, saved.special_tokens, ranks_file)
        for vector in saved.vectors:
            if (got := opened.encode(vector.text).tolist()) != list(vector.ids):
                raise user_error(
                    f"{described}: vectors",
                    f"{vector.text!r} gives {got} here, and gave {list(vector.ids)} when saved",
                    "Install the version of tiktoken named in the dataset's manifest.json.",
                )
        return opened


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`.

    Args:
        name: `gpt2` (OpenAI's 50,257 tokens), `bytes` (256 and end-of-text; needs no file and
            no network), or the path of a file of ranks as tiktoken writes it (a token in
            base64 and its rank a line). A `tokenizer.json` beside such a file may give
            `pattern` and `special_tokens`; otherwise they are GPT-2's.

    Raises:
        UserError: there is no such tokenizer, or its files cannot be fetched or used.
    """
    if name == "bytes":
        ranks = {bytes([value]): value for value in range(256)}
        return _build(name, ranks, BYTES_PATTERN, {END_OF_TEXT: 256}, Path(name))
    if name == "gpt2":
        require_gpt2_ranks()
        import tiktoken

        return _wrap(name, tiktoken.get_encoding("gpt2"))
    path = Path(name)
    if not path.is_file():
        raise user_error(
            f"tokenizer {name}",
            "neither gpt2, nor bytes, nor a file",
            "Name one of the two, or the path of a ranks file (base64 and rank a line).",
        )
    ranks = _read_ranks(path)
    beside = path.parent / TOKENIZER_FILE
    if beside.exists():
        splitting = _read_json(beside, _Splitting)
        return _build(path.name, ranks, splitting.pattern, splitting.special_tokens, path)
    return _build(path.name, ranks, GPT2_PATTERN, {END_OF_TEXT: max(ranks.values()) + 1}, path)


def _build(
    name: str, ranks: dict[bytes, int], pattern: str, special_tokens: dict[str, int], path: Path
) -> Tokenizer:
    import tiktoken  # 0.1 s, which a refused dataset need not wait for

    if missing := [value for value in range(256) if bytes([value]) not in ranks]:
        raise user_error(
            str(path),
            f"no rank for {len(missing)} of the 256 single bytes, the first {missing[0]:#04x}",
            "Give a byte-level ranks file, which can encode any text.",
        )
    ids = [*ranks.values(), *special_tokens.values()]
    if END_OF_TEXT not in special_tokens or len(set(ids)) != len(ids) or min(ids) < 0:
        raise user_error(
            str(path),
            f"special tokens {special_tokens} with {len(ranks)} ranks up to {max(ranks.values())}",
            f"They need {END_OF_TEXT}, and ids of their own: none twice, none below 0.",
        )
    try:
        encoding = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens
        )
    except ValueError as error:
        raise user_error(
            f"{path}: pattern", f"{pattern!r}: {error}", "Give a regular expression."
        ) from error
    tokenizer = _wrap(name, encoding)
    for text in PROBES:
        if (back := tokenizer.decode(tokenizer.encode(text))) != text:
            raise user_error(
                f"{path}: pattern",
                f"{pattern!r} loses text: {text!r} comes back as {back!r}",
                "Give a pattern that matches every character.",
            )
    return tokenizer


def _wrap(name: str, encoding: tiktoken.Encoding) -> Tokenizer:
    specials = encoding._special_tokens
    sha256 = _digest(_ranks_text(encoding._mergeable_ranks), encoding._pat_str, specials)
    return Tokenizer(name, encoding, encoding.n_vocab, specials[END_OF_TEXT], sha256)


def _digest(ranks_text: bytes, pattern: str, special_tokens: dict[str, int]) -> str:
    rest = json.dumps([pattern, sorted(special_tokens.items())]).encode()
    return hashlib.sha256(ranks_text + rest).hexdigest()


def _ranks_text(ranks: dict[bytes, int]) -> bytes:
    lines = sorted((rank, base64.b64encode(token)) for token, rank in ranks.items())
    return b"".join(b"%b %d\n" % (token, rank) for rank, token in lines)


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise user_error(str(path), f"cannot be read ({error.strerror})", "Restore it.") from error
    for number, line in enumerate(lines, start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise user_error(
                f"{path}: line {number}",
                f"{line[:60]!r} is not a token in base64 and its rank",
                "Give a ranks file as tiktoken writes it.",
            ) from error
    return ranks


def _read_json(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise user_error(str(path), f"cannot be read ({error.strerror})", "Restore it.") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "file"
        raise user_error(
            f"{path}: {key}", first["msg"], "Restore it, or move it away if it is not this one's."
        ) from error
