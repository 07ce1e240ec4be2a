"""hf:// addresses, against a server that answers as the Hugging Face hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.files.fault_server import FaultServer, serving, shard

ROOT = Path(__file__).resolve().parents[2]
CONTENT = shard(5, 3 * 2**20 + 1)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TREE = "/api/datasets/me/owt/tree/main/made"
FILE = "/datasets/me/owt/resolve/main/made/manifest.json"
REPOSITORY = {"id": "me/owt", "_id": "1", "sha": "abc", "siblings": [], "private": False}
LISTED = [{"type": "file", "oid": "x", "size": len(CONTENT), "path": "made/manifest.json"}]
FILES = {
    "/api/datasets/me/owt/revision/main": json.dumps(REPOSITORY).encode(),
    TREE: json.dumps(LISTED).encode(),
    FILE: CONTENT,
}


def download(server: FaultServer, name: str, out: Path) -> str:
    """What a process of its own says: the hub's client reads its address once, when imported."""
    code = (
        "from pathlib import Path\n"
        "from gpt2_ds.files.remote_files import RemoteFolder\n"
        "remote = RemoteFolder('hf://datasets/me/owt@main/made', attempts=2,\n"
        "    first_delay_seconds=0.01)\n"
        "try:\n"
        f"    remote.download({name!r}, Path({str(out / 'file')!r}), {len(CONTENT)}, {SHA256!r})\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_a_file_of_the_hub_comes_whole_in_one_stream(tmp_path: Path) -> None:
    with serving(FILES) as server:
        assert download(server, "manifest.json", tmp_path) == ""
        assert (tmp_path / "file").read_bytes() == CONTENT
        assert server.requests[FILE] == 1
        assert not any(name.lower() == "range" for headers in server.seen for name in headers)


def test_a_dropped_connection_to_the_hub_spoils_nothing(tmp_path: Path) -> None:
    # The hub's client resumes by itself where it was, and does not see that this server
    # begins again. The hash does.
    with serving(FILES) as server:
        server.fail(FILE, "drop", times=1)
        assert download(server, "manifest.json", tmp_path) == ""
        assert (tmp_path / "file").read_bytes() == CONTENT


def test_what_the_hub_refuses_is_said(tmp_path: Path) -> None:
    with serving(FILES) as server:
        server.fail(FILE, "403")
        assert download(server, "manifest.json", tmp_path).startswith(
            "UserError hf://datasets/me/owt@main/made: manifest.json: access is refused: HTTP 403"
        )
        assert "none.json: there is no such file" in download(server, "none.json", tmp_path)
