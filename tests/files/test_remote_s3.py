"""A real S3 server (moto's) on loopback, through s3fs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.files.remote_files import RemoteFolder
from tests.files.fault_server import serving, shard
from tests.files.s3_server import lead_to, s3_server

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

CONTENT = shard(3, 9 * 2**20 + 5)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as (address, client):
        client.put_object(Bucket="bucket", Key="owt/train/0.bin", Body=CONTENT)
        client.put_object(Bucket="bucket", Key="owt/manifest.json", Body=b"{}")
        yield address


@pytest.fixture(autouse=True)
def environment(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lead_to(endpoint, monkeypatch)


def folder_of(address: str = "s3://bucket/owt") -> RemoteFolder:
    return RemoteFolder(address, attempts=2, first_delay_seconds=0.01)


def test_files_come_whole(tmp_path: Path) -> None:
    remote = folder_of()
    assert remote.read("manifest.json") == b"{}"
    remote.download("train/0.bin", tmp_path / "0.bin", len(CONTENT), SHA256)
    assert (tmp_path / "0.bin").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["0.bin"]


def test_what_is_missing_is_said() -> None:
    with pytest.raises(UserError, match=r"^s3://bucket/owt: none: there is no such file"):
        folder_of().read("none")
    with pytest.raises(UserError, match=r"^s3://none/owt: none: there is no such file"):
        folder_of("s3://none/owt").read("none")


def test_what_is_not_the_expected_is_tried_again_and_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match=r"more than 1000 bytes came, expected 1000, at the last"):
        folder_of().download("train/0.bin", tmp_path / "0.bin", 1000, SHA256)
    with pytest.raises(RunError, match=f"sha256 {SHA256} came, expected {'0' * 64}"):
        folder_of().download("train/0.bin", tmp_path / "0.bin", len(CONTENT), "0" * 64)
    assert capfd.readouterr().err.count("attempt 2 of 2") == 2
    assert list(tmp_path.iterdir()) == []


def test_what_was_replaced_is_read_anew(endpoint: str) -> None:
    import boto3

    client = boto3.client("s3", region_name="us-east-1")
    remote = folder_of()
    for content in (b"one", b"other"):
        client.put_object(Bucket="bucket", Key="owt/changing.json", Body=content)
        assert remote.read("changing.json") == content


def test_without_credentials_access_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"manifest.json: access is refused: NoCredentialsError"):
        folder_of().read("manifest.json")


@pytest.mark.parametrize(
    "status, kind, said",
    [
        ("503", RunError, "HTTP 503 .*at the last of 2 attempts"),
        ("hangup", RunError, "Connection was closed .*at the last of 2 attempts"),
        ("500", RunError, "HTTP 500 .*at the last of 2 attempts"),
        ("403", UserError, "access is refused: HTTP 403"),
    ],
)
def test_the_answers_of_a_server_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, status: str, kind: type[Exception], said: str
) -> None:
    with serving({}) as server:
        server.fail("/bucket/owt/manifest.json", status)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        with pytest.raises(kind, match=said):
            folder_of().read("manifest.json")
        # Its libraries would try up to 25 times in silence; all attempts are ours.
        expected = {"403": 1, "hangup": 4}  # aiohttp asks twice by itself when nothing comes
        assert server.requests["/bucket/owt/manifest.json"] == expected.get(status, 2)
