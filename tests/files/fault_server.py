"""A real HTTP server on loopback that misbehaves as it is told."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gpt2_ds.data.format.manifest import ShardEntry

FOREVER = 10**9


class FaultServer:
    """Serves `files` (path -> bytes).

    `fail(path, kind, times)` spoils the next answers for a path. Kinds: a status such as "503";
    "hangup" (no answer), "drop" (the connection is cut in the middle), "short" (fewer bytes, and
    announced so), "long" (more bytes), "flip" (one bit is wrong), "stall" (half, then nothing
    until the client hangs up).
    """

    def __init__(self, files: Mapping[str, bytes], latency_seconds: float = 0.0) -> None:
        self.files = dict(files)
        self.latency_seconds = latency_seconds
        self.requests: Counter[str] = Counter()
        self.seen: list[dict[str, str]] = []  # headers
        self.stalled = threading.Event()
        self.left = threading.Event()
        self._faults: dict[str, list[Any]] = {}
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._answer(self)

            def do_HEAD(self) -> None:
                raise AssertionError("a request that costs a round trip and brings nothing")

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that break off are what the tests are about

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, path: str, kind: str, times: int = FOREVER) -> None:
        self._faults[path] = [kind, times]

    def run(self) -> None:
        self._server.serve_forever(poll_interval=0.01)

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, path: str) -> str:
        with self._lock:
            self.requests[path] += 1
            kind, times = self._faults.get(path, ("", 0))
            if not times:
                return ""
            self._faults[path][1] -= 1
            return str(kind)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        self.seen.append({"path": handler.path, **dict(handler.headers)})
        fault = self._fault(path)
        time.sleep(self.latency_seconds)
        body = self.files.get(path)
        if fault.isdigit() or (body is None and not fault):
            handler.send_response(int(fault or 404))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if fault == "hangup":
            handler.close_connection = True
            return
        assert body is not None
        announced, sent = len(body), body
        half = len(body) // 2
        if fault == "flip":
            sent = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        elif fault == "long":
            announced, sent = len(body) + 2**21, body + bytes(2**21)
        elif fault == "short":
            announced, sent = half, body[:half]
        elif fault:
            sent = body[:half]
        handler.send_response(200)
        handler.send_header("Content-Length", str(announced))
        handler.end_headers()
        handler.wfile.write(sent)
        if fault == "stall":
            self.stalled.set()
            with suppress(ConnectionError):  # it breaks off with bytes unread
                handler.connection.recv(1)
            self.left.set()
        handler.close_connection = bool(fault)


@contextmanager
def serving(files: Mapping[str, bytes], latency_seconds: float = 0.0) -> Iterator[FaultServer]:
    server = FaultServer(files, latency_seconds)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.end()
        thread.join()


def shard(number: int, n_bytes: int) -> bytes:
    """The bytes of a made-up shard: each number gives others."""
    block = hashlib.shake_256(str(number).encode()).digest(4096)
    return (block * (n_bytes // len(block) + 1))[:n_bytes]


def entry_of(file: str, content: bytes) -> ShardEntry:
    return ShardEntry(
        split="train",
        file=file,
        tokens=len(content) // 2,
        documents=1,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        block_crc32=(),
        index_sha256=None,
    )
