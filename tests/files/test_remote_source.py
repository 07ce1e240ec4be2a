from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import fsspec
import pytest

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.files.remote_files import RemoteFolder
from gpt2_ds.files.remote_source import Stopped, fault_of, redacted
from tests.files.fault_server import shard

CONTENT = shard(7, 3 * 2**20 + 17)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "train/shard-00000.bin"


def download(remote: RemoteFolder, out: Path) -> bytes:
    remote.download(NAME, out / "shard.bin", len(CONTENT), SHA256)
    return (out / "shard.bin").read_bytes()


def test_redaction() -> None:
    assert redacted("s3://key:a@b@bucket/x, 'http://h/x?a=1' or <https://h?b> 1?2") == (
        "s3://***@bucket/x, 'http://h/x?***' or <https://h?***> 1?2"
    )


def test_an_address_nobody_knows_is_refused() -> None:
    with pytest.raises(UserError, match=r"^htps://b: no kind of .*: htps://\. Did you mean http"):
        RemoteFolder("htps://b")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError) as error:
        RemoteFolder("s3://bucket/owt")
    assert str(error.value) == (
        "s3://bucket/owt: s3:// needs the package 's3fs'. "
        f'Install it: pip install s3fs "fsspec<={fsspec.__version__}".'
    )
    with pytest.raises(UserError, match=r"needs the package 'Install .* S3'\. Install what it"):
        RemoteFolder("oci://bucket/owt")


def test_a_file_system_without_streams_is_read_in_ranges(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe(f"/owt/{NAME}", CONTENT)
    remote = RemoteFolder("memory://owt", attempts=2, first_delay_seconds=0.01)
    assert download(remote, tmp_path) == CONTENT
    files.pipe(f"/owt/{NAME}", CONTENT[:-1])  # nothing of before is remembered
    with pytest.raises(RunError, match=f"{len(CONTENT) - 1} bytes came, expected {len(CONTENT)}"):
        download(remote, tmp_path)
    files.rm("/owt", recursive=True)
    with pytest.raises(UserError, match=r"memory://owt: manifest.json: there is no such file"):
        remote.read("manifest.json")
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        remote.download(NAME, tmp_path / "other", 1, SHA256, stop)


def test_listings_are_not_remembered() -> None:
    assert not RemoteFolder("memory://owt")._source.files.dircache.use_listings_cache


class _Denied(Exception):
    def __init__(self, **fields: object) -> None:
        super().__init__("no")
        self.__dict__.update(fields)


@pytest.mark.parametrize(
    "error, kind",
    [
        (_Denied(code=403), "refused"),  # gcsfs
        (_Denied(response=type("Response", (), {"status_code": 401})()), "refused"),  # httpx
        (_Denied(response=type("Response", (), {"status_code": 502})()), "broken"),
        (_Denied(response={"ResponseMetadata": {"HTTPStatusCode": 400}}), "refused"),  # botocore
        (type("NoCredentialsError", (Exception,), {})(), "refused"),
        (PermissionError("x"), "refused"),
        (IsADirectoryError("x"), "missing"),
        (ConnectionResetError("x"), "broken"),
        (TimeoutError(), "broken"),
    ],
)
def test_errors_of_other_libraries_are_of_three_kinds(error: Exception, kind: str) -> None:
    assert fault_of(error).kind == kind
