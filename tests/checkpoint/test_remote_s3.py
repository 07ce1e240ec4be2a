"""Checkpoints on a real S3 server (moto's) on loopback, through s3fs; and the words of refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2_ds.checkpoint.manifest import MANIFEST, step_name
from gpt2_ds.checkpoint.remote import Damaged, RemoteCheckpoints
from gpt2_ds.config.errors import RunError, UserError
from tests.checkpoint.saved_files import FILES, contents, save
from tests.checkpoint.test_restore import fetched
from tests.files.fault_server import serving
from tests.files.s3_server import lead_to, s3_server
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_dataset

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as (address, _):
        yield address


@pytest.fixture(autouse=True)
def environment(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lead_to(endpoint, monkeypatch)


def remote_of(address: str) -> RemoteCheckpoints:
    return RemoteCheckpoints(address, attempts=2, first_delay_seconds=0.01)


def test_a_copy_comes_back_whole(tmp_path: Path) -> None:
    remote = remote_of("s3://bucket/runs/whole/")
    assert remote.complete() == []
    big = {**FILES, "big.pt": bytes(range(256)) * (6 << 12)}  # of several pieces
    for step in (1, 2, 3):
        remote.upload(save(tmp_path / "a", step, big if step == 2 else None))
    remote_of("s3://bucket/runs/other").upload(tmp_path / "a/checkpoints" / step_name(1))
    assert remote.complete() == [3, 2, 1]
    remote.prune({2})
    assert remote.complete() == [3, 2]
    assert remote.files.sizes(step_name(1)) == {}
    path = remote.fetch(2, tmp_path / "b")
    assert contents(path) == contents(tmp_path / "a/checkpoints" / step_name(2))
    assert remote_of("s3://bucket/runs/other").complete() == [1]  # of another run: left alone


@pytest.mark.heavy
def test_a_run_whose_disk_is_lost_goes_on_from_a_bucket(tmp_path: Path) -> None:
    data = small_dataset(tmp_path)
    (said,) = run_ranks(fetched, 1, tmp_path, data, tmp_path, "s3://bucket/jobs")
    assert "s3://bucket/jobs/run/step_00000005: fetching this copy" in said
    assert "resuming from step 5" in said
    assert [step for step, _ in metrics_of(tmp_path / "run", "step", "loss")] == [6, 7, 8]
    assert remote_of("s3://bucket/jobs/run").complete() == [8, 6, 3]


def test_an_unfinished_copy_is_none_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = remote_of("s3://bucket/runs/unfinished")
    sent: list[str] = []
    send = remote.files._files.put_file

    def broken(local: str, path: str, callback: object) -> None:
        if len(sent) >= 2:
            raise OSError(5, "the line is cut")
        sent.append(path)
        send(local, path, callback=callback)

    with monkeypatch.context() as patch:
        patch.setattr(remote.files._files, "put_file", broken)
        with pytest.raises(RunError, match=r"the line is cut, at the last of 2 attempts\."):
            remote.upload(save(tmp_path / "a", 1))
    assert remote.complete() == []

    def watched(local: str, path: str, callback: object) -> None:
        sent.append(path)
        send(local, path, callback=callback)

    monkeypatch.setattr(remote.files._files, "put_file", watched)
    remote.upload(tmp_path / "a/checkpoints" / step_name(1))
    assert remote.complete() == [1]
    assert len(sent) == len(set(sent)) == len(FILES)
    assert contents(remote.fetch(1, tmp_path / "b")) == contents(
        tmp_path / "a/checkpoints" / step_name(1)
    )


def test_what_was_replaced_there_is_read_anew(tmp_path: Path, endpoint: str) -> None:
    import boto3

    remote = remote_of("s3://bucket/runs/changed")
    remote.upload(save(tmp_path / "a", 1))
    assert remote.complete() == [1]
    key = f"runs/changed/{step_name(1)}"
    client = boto3.client("s3")
    client.put_object(Bucket="bucket", Key=f"{key}/a.pt", Body=FILES["a.pt"][::-1])
    with pytest.raises(Damaged, match=r"a\.pt: sha256"):
        remote.fetch(1, tmp_path / "b")
    client.delete_object(Bucket="bucket", Key=f"{key}/a.pt")
    with pytest.raises(Damaged, match=r"a\.pt: not there"):
        remote.fetch(1, tmp_path / "b")
    client.delete_object(Bucket="bucket", Key=f"{key}/{MANIFEST}")
    assert remote.complete() == []


def test_a_bucket_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    import boto3

    remote = remote_of("s3://missing-bucket/run")
    assert remote.complete() == []
    with pytest.raises(UserError) as caught:
        remote.upload(save(tmp_path, 1))
    assert str(caught.value) == (
        f"s3://missing-bucket/run/{step_name(1)}/uploading.json: there is no such file or folder. "
        "Make the folder (bucket) first, and check the address: checkpoint.copy_to."
    )
    names = [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]]
    assert names == ["bucket"]


def test_without_credentials_access_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError) as caught:
        remote_of("s3://bucket/run").complete()
    message = str(caught.value)
    assert message.startswith("s3://bucket/run: access is refused: NoCredentialsError")
    assert message.endswith(
        "Give this machine the right to read and to write it, by credentials in the environment."
    )


@pytest.mark.parametrize(
    "status, kind, said",
    [
        ("503", RunError, "HTTP 503 .*at the last of 2 attempts"),
        ("403", UserError, "access is refused: "),
    ],
)
def test_the_answers_of_a_server_are_told_apart(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    kind: type[Exception],
    said: str,
) -> None:
    name = f"/bucket/run/{step_name(1)}/{MANIFEST}"
    with serving({}) as server:
        server.fail(name, status)
        server.fail("/bucket", status)  # which lists it
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        with pytest.raises(kind, match=said):
            remote_of("s3://bucket/run").upload(save(tmp_path, 1))
        with pytest.raises(kind, match=said):
            remote_of("s3://bucket/run").complete()
        # Its libraries would try up to 25 times in silence; all attempts are ours.
        attempts = {"503": 2, "403": 1}[status]
        assert (server.requests[name], server.requests["/bucket"]) == (attempts, attempts)
