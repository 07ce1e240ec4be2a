"""What a probe of another process tells, and what follows from it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from gpt2_ds.health import peers
from gpt2_ds.health.peers import Liveness, LivenessSocket, Peer, Peers
from gpt2_ds.health.rank_status import RankProcess, Status
from gpt2_ds.hosts.process import Process
from tests.conftest import REPOSITORY

_LISTENING = """
from gpt2_ds.health.peers import LivenessSocket
socket = LivenessSocket()
print(socket.peer.host, socket.peer.port, flush=True)
import time; time.sleep(600)
"""


def test_a_stopped_process_is_open_and_a_dead_one_closed() -> None:
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1"}
    process = subprocess.Popen(
        [sys.executable, "-c", _LISTENING], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    host, port = process.stdout.readline().split()
    peer = Peer(host.decode(), int(port))
    assert (peer.host, peer.liveness()) == ("127.0.0.1", "alive")
    os.kill(process.pid, signal.SIGSTOP)
    assert [peer.liveness() for _ in range(200)] == ["alive"] * 200  # for minutes of probes
    process.kill()
    process.communicate()
    assert peer.liveness() == "ended"


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a machine that is gone: nothing comes back. Here, because too many wait."""
    monkeypatch.setattr(peers, "_PROBE_SECONDS", 0.2)
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        assert Peer(*full.getsockname()).liveness() == "unreachable"


THIS = RankProcess.of_this_process(0)
RANKS = [
    replace(THIS, rank=rank, host=host, place=host)
    for rank, host in enumerate(["a", "a", "b", "b"])
]
GOING = Status(number=9, step=7, marks=2, doing="averaging")


class Town:
    """Peers whose answers the test gives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mine: int = 0) -> None:
        self.answers: dict[int, Liveness] = dict.fromkeys(range(4), "alive")
        self.probes: list[int] = []
        monkeypatch.setattr(peers, "_PROBE_SECONDS", 0.0)
        monkeypatch.setattr(Peer, "liveness", lambda peer: self._probe(peer))
        self.peers = Peers(RANKS, [Peer("a", rank) for rank in range(4)], mine)

    def _probe(self, peer: Peer) -> Liveness:
        self.probes.append(peer.port)
        return self.answers[peer.port]


# One machine's peers are tried once, while all are alive.
FIRST = [3]


def test_whoever_is_heard_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch)
    for _ in range(3):
        assert town.peers.find([0.0, 99.0, 9.0, 9.0], [GOING] * 4) is None
    assert town.probes == FIRST  # rank 1 is of this machine: its process is looked at


def test_a_closed_door_is_a_dead_process(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch)
    assert town.peers.find([0.0] * 4, [GOING] * 4) is None
    town.answers[2] = "ended"
    assert town.peers.find([0.0, 0.0, 2.0, 2.0], [GOING] * 4) is None
    broken = [GOING, replace(GOING, broken=True), GOING, GOING]
    for statuses, seconds in ((broken, 2.0), ([GOING] * 4, 11.0)):
        found = town.peers.find([0.0, 0.0, seconds, seconds], statuses)
        assert found is not None
        assert (found.kind, found.ranks) == ("dead", [2])
        assert found.sentence.startswith("rank 2 on b (pid ")
        assert "was killed or died in step 7 while averaging" in found.sentence


def test_two_probes_without_an_answer_are_a_dead_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch)
    assert town.peers.find([0.0] * 4, [GOING] * 4) is None
    town.answers = dict.fromkeys(range(4), "unreachable")
    assert town.peers.find([0.0, 0.0, 11.0, 3.0], [GOING] * 4) is None
    found = town.peers.find([0.0, 0.0, 14.0, 6.0], [GOING] * 4)
    assert found is not None
    assert (found.kind, found.ranks) == ("dead", [2, 3])
    assert found.sentence == (
        "host b (ranks 2, 3) does not answer any more, since step 7 while averaging. Nothing was "
        "heard for 14 s: the machine died, or the network to it is cut. The same command resumes "
        "from the last complete checkpoint, if need be with a hostfile of the machines that are "
        "left."
    )


def test_an_answer_in_between_forgives(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch)
    silent = [0.0, 0.0, 11.0, 0.0]
    assert town.peers.find(silent, [GOING] * 4) is None
    for answer in ("unreachable", "alive", "unreachable", "alive"):
        town.answers[2] = answer  # type: ignore[assignment]
        assert town.peers.find(silent, [GOING] * 4) is None


def test_whoever_is_heard_in_between_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch)
    assert town.peers.find([0.0] * 4, [GOING] * 4) is None
    town.answers = dict.fromkeys(range(4), "unreachable")
    for silent in (11.0, 0.0, 11.0, 0.0):
        assert town.peers.find([0.0, 0.0, silent, silent], [GOING] * 4) is None


def test_behind_a_firewall_silence_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = Town(monkeypatch)
    town.answers = dict.fromkeys(range(4), "unreachable")
    for _ in range(5):
        assert town.peers.find([0.0, 0.0, 99.0, 99.0], [GOING] * 4) is None
    assert town.probes == FIRST
    said = capsys.readouterr().err
    assert said.startswith("warning: rank 3 on b (pid ")
    assert "cannot be reached at its port 3: a machine that dies will be noticed only after" in said
    assert said.count("warning") == 1


def test_a_rank_that_has_left_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch)
    assert town.peers.find([0.0] * 4, [GOING] * 4) is None
    town.answers = dict.fromkeys(range(4), "ended")
    left = replace(GOING, end="left")
    assert town.peers.find([0.0, 0.0, 99.0, 99.0], [GOING, GOING, left, left]) is None


def test_the_others_probe_rank_0_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch, 2)
    assert town.peers.find([0.0] * 4, [GOING] * 4) is None
    town.answers = dict.fromkeys(range(4), "unreachable")
    for expected in (None, [0, 1]):
        found = town.peers.find([11.0, 0.0, 0.0, 0.0], [GOING] * 4)
        assert (found.ranks if found else None) == expected
    assert town.probes == [0, 0, 0]


def test_of_a_machine_one_rank_probes_and_the_others_look_at_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.find(child.pid)
    assert process is not None
    ranks = [*RANKS[:2], replace(RANKS[2], process=process), RANKS[3]]
    town = Town(monkeypatch, 3)
    third = Peers(ranks, [Peer("a", rank) for rank in range(4)], 3)
    silent = [20.0, 0.0, 0.0, 0.0]
    assert third.find(silent, [GOING] * 4) is None
    child.communicate()
    assert third.find([0.0] * 4, [GOING] * 4) is None
    found = third.find(silent, [GOING] * 4)
    assert found is not None
    assert (found.kind, found.ranks) == ("dead", [0, 1])
    assert town.probes == []


def test_a_stopped_process_is_connected_at_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    town, now = Town(monkeypatch, 2), 0.0
    monkeypatch.setattr(peers, "_PROBE_SECONDS", 3.0)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(1800):
        now += 1.0
        assert town.peers.find([60.0, 0.0, 0.0, 0.0], [GOING] * 4) is None
    assert 8 <= len(town.probes) <= 12


def test_nobody_waits_at_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(peers, "_BACKLOG", 2)
    monkeypatch.setattr(peers, "_PROBE_SECONDS", 0.2)
    socket = LivenessSocket()
    for _ in range(20):
        assert socket.peer.liveness() == "alive"
        socket.answer()
    assert [socket.peer.liveness() for _ in range(5)][-1] == "unreachable"
    socket.close()
    socket.answer()


def test_probes_are_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    town, now = Town(monkeypatch), time.monotonic()
    assert town.peers.find([0.0] * 4, [GOING] * 4) is None
    monkeypatch.setattr(peers, "_PROBE_SECONDS", 30.0)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    town.answers = dict.fromkeys(range(4), "unreachable")
    silent = [0.0, 0.0, 11.0, 11.0]
    assert [town.peers.find(silent, [GOING] * 4) for _ in range(5)] == [None] * 5
    now += 31.0
    assert town.peers.find(silent, [GOING] * 4) is not None


def test_on_one_machine_there_are_no_peers_to_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    ranks = [replace(member, place="a") for member in RANKS]
    socket = LivenessSocket()
    socket.close()
    alone = Peers(ranks, [socket.peer] * 4, 0)
    assert alone.find([99.0] * 4, [replace(GOING, broken=True)] * 4) is None
