"""As much of the Hugging Face hub as it takes to stream a dataset, on this machine."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Hub(http.server.ThreadingHTTPServer):
    """Serves the files of one dataset, OWNER/NAME, at one commit.

    Args:
        root: its files.
        commit: what every branch stands for.
    """

    def __init__(self, root: Path, commit: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.commit = commit
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.asked.append(path)
        head, _, rest = path.removeprefix("/").partition("OWNER/NAME")
        if head == "api/datasets/" and (not rest or rest.startswith("/revision/")):
            self._information(rest.removeprefix("/revision/"))
        elif head == "api/datasets/" and rest.startswith("/tree/"):
            assert "recursive=false" in query
            self._listing(self.server.root.joinpath(*rest.split("/")[3:]))
        elif head == "datasets/" and rest.startswith("/resolve/"):
            self._file(self.server.root.joinpath(*rest.split("/")[3:]))
        else:
            self._answer(404, b"{}")

    do_HEAD = do_GET

    def _information(self, revision: str) -> None:
        if revision == "nowhere":
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        commit = revision if len(revision) == 40 else self.server.commit
        told = {"id": "OWNER/NAME", "sha": commit, "private": False, "siblings": [], "tags": []}
        self._answer(200, json.dumps(told).encode())

    def _listing(self, folder: Path) -> None:
        told = [
            {
                "type": "directory" if path.is_dir() else "file",
                "path": path.relative_to(self.server.root).as_posix(),
                "size": path.stat().st_size,
                "oid": "0" * 40,
            }
            for path in sorted(folder.iterdir())
        ]
        self._answer(200, json.dumps(told).encode())

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data, headers = path.read_bytes(), {"ETag": '"1"', "X-Repo-Commit": self.server.commit}
        if wanted := self.headers.get("Range"):
            first, last = (int(word) for word in wanted.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._answer(206, data[first : last + 1], headers)
        else:
            self._answer(200, data, headers)

    def _answer(self, code: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextmanager
def serve(root: Path, commit: str) -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    with Hub(root, commit) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
