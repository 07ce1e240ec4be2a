from __future__ import annotations

import base64
import hashlib
import io
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format import gpt2_ranks, tokenizer
from gpt2_ds.data.format.tokenizer import Tokenizer, load_tokenizer

BYTES = load_tokenizer("bytes")


@given(st.text())
def test_bytes_are_the_bytes(text: str) -> None:
    ids = BYTES.encode(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == list(text.encode())
    assert BYTES.decode(ids) == text


def test_bytes_vocabulary() -> None:
    assert (BYTES.n_vocab, BYTES.eot_token) == (257, 256)
    assert BYTES.decode([104, 105, 256]) == "hi<|endoftext|>"


def test_what_looks_like_a_special_token_is_text() -> None:
    assert BYTES.eot_token not in BYTES.encode("a<|endoftext|>b")


def test_lone_surrogates_are_replaced() -> None:
    assert BYTES.decode(BYTES.encode("a\ud800b")) == "a\ufffdb"


def test_partial_characters() -> None:
    ids = BYTES.encode("é")
    assert BYTES.decode_bytes(ids[:1]) == b"\xc3"
    assert BYTES.decode(ids[:1]) == "\ufffd"


def test_an_id_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"tokenizer bytes: .*300 \(the vocabulary has 257 tokens"):
        BYTES.decode([300])


def test_gpt2(gpt2_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_cache))
    gpt2 = load_tokenizer("gpt2")
    assert (gpt2.n_vocab, gpt2.eot_token, gpt2.dtype) == (50257, 50256, np.uint16)
    assert gpt2.encode("Hello, world!").tolist() == [15496, 11, 995, 0]
    assert gpt2.encoding._pat_str == tokenizer.GPT2_PATTERN
    gpt2.save(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    opened = Tokenizer.open(tmp_path)
    text = "naïve café — 日本語 🙂 don't  \n\n  1234567<|endoftext|>"
    assert opened.encode(text).tolist() == gpt2.encode(text).tolist()
    assert (opened.name, opened.sha256) == ("gpt2", gpt2.sha256)
    # The ranks alone, named as a file, are the same tokenizer.
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(str(tmp_path / "ranks.tiktoken")).sha256 == gpt2.sha256


def no_network(address: str, timeout: float) -> Any:
    assert timeout == 10.0
    raise urllib.error.URLError("timed out")


def test_gpt2_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(UserError) as refused:
        load_tokenizer("gpt2")
    folder = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
    assert str(refused.value) == (
        f"tokenizer gpt2: vocab.bpe is not in {tmp_path}, and fetching it there failed: "
        "<urlopen error timed out>. Where there is a network, download "
        f"{folder}/vocab.bpe as 6d1cbeee0f20b3d9449abfede4726ed8212e3aee and "
        f"{folder}/encoder.json as 6c7ea1a7e38e3a7f062df639a5b80947f075ffe6 into one folder, "
        "bring it here and set TIKTOKEN_CACHE_DIR to it; or use --tokenizer bytes."
    )


def test_a_damaged_cached_file_is_named_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path))
    path = tmp_path / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
    path.write_bytes(b"half")
    with pytest.raises(
        UserError, match=r"6d1cbeee\w+: not the published vocab.bpe: sha256 .*, exp"
    ):
        load_tokenizer("gpt2")
    assert path.read_bytes() == b"half"


def test_a_switched_off_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with pytest.raises(UserError, match="environment: TIKTOKEN_CACHE_DIR: empty, which switches"):
        load_tokenizer("gpt2")


def test_the_default_cache_is_tiktokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    assert gpt2_ranks.cache_directory().name == "data-gym-cache"


@pytest.mark.parametrize("sent", [b"good", b"a login page"])
def test_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sent: bytes) -> None:
    files = {"https://host/vocab.bpe": hashlib.sha256(b"good").hexdigest()}
    monkeypatch.setattr(gpt2_ranks, "FILES", files)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, timeout: io.BytesIO(sent))
    if sent == b"good":
        gpt2_ranks.require_gpt2_ranks()
        name = gpt2_ranks.cached_name("https://host/vocab.bpe")
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]
    else:
        with pytest.raises(UserError, match=r"vocab.bpe sent 12 bytes with sha256 .*, expected"):
            gpt2_ranks.require_gpt2_ranks()


def test_save_and_open(tmp_path: Path) -> None:
    BYTES.save(tmp_path / "deep" / "tokenizer")
    opened = Tokenizer.open(tmp_path / "deep" / "tokenizer")
    assert (opened.name, opened.sha256) == ("bytes", BYTES.sha256)
    assert opened.n_vocab == 257
    assert opened.encode("héllo").tolist() == BYTES.encode("héllo").tolist()


def edit_json(path: Path, **changes: Any) -> None:
    """Change it, and seal it with the hash of what is there then."""
    content = json.loads(path.read_text()) | changes
    del content["file_sha256"]
    rest = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    content["file_sha256"] = hashlib.sha256(rest.encode()).hexdigest()
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def test_a_file_without_a_hash_is_refused(tmp_path: Path) -> None:
    BYTES.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    edit_json(file)
    assert Tokenizer.open(tmp_path).sha256 == BYTES.sha256
    content = json.loads(file.read_text())
    del content["file_sha256"]
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    with pytest.raises(UserError, match=r"tokenizer.json: not what was saved: damaged. Restore it"):
        Tokenizer.open(tmp_path)


def test_a_changed_name_and_another_form(tmp_path: Path) -> None:
    BYTES.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    saved = file.read_text()
    for changed in (saved.replace('"bytes"', '"bites"'), saved.replace(": 257", ":  257")):
        assert changed != saved
        file.write_text(changed)
        with pytest.raises(UserError, match=r"tokenizer.json: not what was saved: damaged. Restor"):
            Tokenizer.open(tmp_path)
    file.write_text(saved)
    edit_json(file)
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match=r"tokenizer.json: not what was saved: damaged. Restore it"):
        Tokenizer.open(tmp_path)


def test_ranks_written_another_way_are_refused(tmp_path: Path) -> None:
    """`AS==` is the byte 1 too."""
    BYTES.save(tmp_path)
    ranks = tmp_path / "ranks.tiktoken"
    ranks.write_bytes(ranks.read_bytes().replace(b"AQ== 1\n", b"AS== 1\n", 1))
    with pytest.raises(UserError, match=r"ranks.tiktoken: the tokenizer's sha256 is \w+, and tok"):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sha256": "0" * 64}, r"ranks.tiktoken: the tokenizer's sha256 is \w+, and tokenizer"),
        ({"pattern": "("}, r"ranks.tiktoken: the tokenizer's sha256 is \w+, and tokenizer.json sa"),
        (
            {"vectors": [{"text": "a", "ids": [98]}]},
            r"tokenizer.json: vectors: 'a' gives \[97\] here, and gave \[98\] when saved",
        ),
        ({"n_vocab": "257"}, "tokenizer.json: n_vocab: Input should be a valid integer"),
        ({"more": 1}, "tokenizer.json: more: Extra inputs are not permitted"),
    ],
)
def test_a_changed_tokenizer_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    BYTES.save(tmp_path)
    edit_json(tmp_path / "tokenizer.json", **changes)
    with pytest.raises(UserError, match=message):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize("file", ["ranks.tiktoken", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    BYTES.save(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=rf"{file}: cannot be read \(No such file or directory\)"):
        Tokenizer.open(tmp_path)


def ranks_file(path: Path, ranks: dict[bytes, int]) -> str:
    lines = (b"%b %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())
    path.write_bytes(b"".join(lines))
    return str(path)


SINGLE = {bytes([value]): value for value in range(256)}


def test_a_ranks_file(tmp_path: Path) -> None:
    name = ranks_file(tmp_path / "mine.tiktoken", SINGLE | {b"ab": 256})
    mine = load_tokenizer(name)
    assert (mine.name, mine.n_vocab, mine.eot_token) == ("mine.tiktoken", 258, 257)
    assert mine.encode("abba").tolist() == [256, 98, 97]
    splitting = {"pattern": r"[\s\S]", "special_tokens": {"<|endoftext|>": 70000}, "other": 1}
    (tmp_path / "tokenizer.json").write_text(json.dumps(splitting))
    split = load_tokenizer(name)
    assert (split.eot_token, split.n_vocab, split.dtype) == (70000, 70001, np.uint32)
    assert split.encode("abba").dtype == np.uint32
    assert split.encode("abba").tolist() == [97, 98, 98, 97]
    assert split.sha256 != mine.sha256


@pytest.mark.parametrize(
    "ranks, splitting, message",
    [
        ({b"a": 0}, None, "mine.tiktoken: no rank for 255 of the 256 single bytes, the first 0x00"),
        (SINGLE, {"pattern": "("}, r"mine.tiktoken: pattern: '\(': .*Give a regular expression"),
        (SINGLE, {"pattern": "a+"}, r"pattern: 'a\+' loses text: .Hello, .* comes back as ''"),
        (
            SINGLE,
            {"special_tokens": {"<|endoftext|>": 7}},
            r"special tokens {'<|endoftext|>': 7} with 256 ranks up to 255. They need <|endof",
        ),
        (
            SINGLE,
            {"special_tokens": {"<eos>": 256}},
            "special tokens {'<eos>': 256} with 256 ranks",
        ),
        (SINGLE, {"pattern": None}, "tokenizer.json: pattern: Input should be a valid string"),
    ],
)
def test_bad_ranks_files(
    tmp_path: Path, ranks: dict[bytes, int], splitting: dict[str, Any] | None, message: str
) -> None:
    name = ranks_file(tmp_path / "mine.tiktoken", ranks)
    if splitting is not None:
        default = {"pattern": r"[\s\S]", "special_tokens": {"<|endoftext|>": 256}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(default | splitting))
    with pytest.raises(UserError, match=message):
        load_tokenizer(name)


@pytest.mark.parametrize("line", ["hello world", "Y!Q== 1", "YQ== one", "YQ=="])
def test_a_file_that_is_no_ranks_file(tmp_path: Path, line: str) -> None:
    (tmp_path / "x").write_text(f"YQ== 0\n{line}\n")
    with pytest.raises(UserError, match=rf"x: line 2: b'{line}' is not a token in base64"):
        load_tokenizer(str(tmp_path / "x"))


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match="tokenizer gpt3: neither gpt2, nor bytes, nor a file"):
        load_tokenizer("gpt3")
