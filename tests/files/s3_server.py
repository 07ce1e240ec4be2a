"""A real S3 server (moto's) on loopback, with an empty bucket named "bucket"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_KEY, _SECRET, _REGION = "key", "secret", "us-east-1"


@contextmanager
def s3_server() -> Iterator[tuple[str, Any]]:
    """Its address, and a client of boto3's."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    client = boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id=_KEY,
        aws_secret_access_key=_SECRET,
        region_name=_REGION,
    )
    client.create_bucket(Bucket="bucket")
    yield address, client
    server.stop()


def lead_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have s3:// mean this server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", _KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", _SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", _REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
