"""Several engines behind one stub: which gets a request, who hears of a loss, and when the server is ready."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_pb
import pytest
from fake_engine import ScriptedClient, until

from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.server import launcher
from mm2c_runtime.server.replica_stats import SUMMED, summed
from mm2c_runtime.stub import keeper as keeper_module
from mm2c_runtime.stub import link as link_module
from mm2c_runtime.stub.fleet import Fleet, replica_gates
from mm2c_runtime.stub.keeper import Keeper
from mm2c_runtime.stub.links import EngineLinks
from mm2c_runtime.stub.load import Load
from mm2c_runtime.stub.paths import gate_flag, load_file
from mm2c_runtime.stub.replicas import Replica, replicas_of
from mm2c_runtime.stub.service import Service

SOCKETS = [Path("/nowhere"), Path("/nowhere.1"), Path("/nowhere.2")]


class Client(ScriptedClient):
    """Keeps count of what has not ended, as EngineClient does."""

    made: dict[str, Client]

    def __init__(self, path: str, on_event: Callable[[Any], None], on_disconnect: Any) -> None:
        super().__init__(path, self._deliver, on_disconnect)
        self._on_event = on_event
        self.live: list[str] = []
        Client.made[path] = self

    def submit(self, id: str, fields: dict[str, Any]) -> None:
        super().submit(id, fields)
        self.live.append(id)

    def _deliver(self, event: dict[str, Any]) -> None:
        if event["type"] in ("finish", "error"):
            self.live.remove(event["id"])
        self._on_event(event)

    @property
    def in_flight(self) -> int:
        return len(self.live)

    def runs(self, id: str) -> bool:
        return id in self.live

    def die(self) -> None:
        lost, self.live = self.live, []
        self._on_disconnect(lost)


class Heard:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.failed: list[str] = []
        self.down: list[int] = []


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch, heard: Heard, tmp_path: Path) -> Iterator[EngineLinks]:
    monkeypatch.setattr(link_module, "EngineClient", Client)
    Client.made = {}
    made = EngineLinks(
        SOCKETS,
        lambda event: heard.events.append(event["id"]),
        heard.failed.extend,
        [lambda n=n: heard.down.append(n) for n in range(3)],
        Load(tmp_path / "load", "minimax_m2", 3),
    )
    for link in made.all:
        link.connect(1)
    yield made
    made.close()


def clients() -> list[Client]:
    return [Client.made[str(socket)] for socket in SOCKETS]


def test_a_request_goes_to_the_least_busy(links: EngineLinks, heard: Heard) -> None:
    for n in range(6):
        links.submit(str(n), {})
    assert [len(client.live) for client in clients()] == [2, 2, 2]
    first = clients()[1]
    for id in list(first.live):
        first.say({"type": "finish", "id": id})
    links.submit("a", {})
    links.submit("b", {})
    assert first.live == ["a", "b"]
    assert len(heard.events) == 2
    links.cancel("a")
    links.cancel("unknown")
    assert [client.cancelled for client in clients()] == [[], ["a"], []]


def test_equally_busy_ones_take_turns(links: EngineLinks) -> None:
    for n in range(3):
        links.submit(str(n), {})
        (client,) = [client for client in clients() if client.live]
        client.say({"type": "finish", "id": str(n)})
    assert [len(client.submitted) for client in clients()] == [1, 1, 1]


def test_requests_of_other_stubs_count(links: EngineLinks, tmp_path: Path) -> None:
    other = Load(tmp_path / "load", "minimax_m2_unary", 3)
    other.put(0, 5)
    other.put(2, 5)
    for n in range(4):
        links.submit(str(n), {})
    assert [len(client.live) for client in clients()] == [0, 4, 0]
    assert other.of(1) == 4
    again = Load(tmp_path / "load", "minimax_m2_unary", 3)  # the stub was started anew
    assert [again.of(n) for n in range(3)] == [0, 4, 0]


def test_the_loss_of_one_fails_its_own(links: EngineLinks, heard: Heard) -> None:
    for n in range(6):
        links.submit(str(n), {})
    lost = clients()[2]
    theirs = list(lost.live)
    lost.die()
    assert (heard.failed, heard.down) == (theirs, [2])
    assert links.connected
    for n in range(6, 10):
        links.submit(str(n), {})
    assert [len(client.live) for client in clients()] == [4, 4, 0]
    for client in clients()[:2]:
        client.die()
    assert not links.connected
    with pytest.raises(RequestError, match="UNAVAILABLE: no engine is running"):
        links.submit("z", {})
    links.all[2].connect(1)
    links.submit("z", {})
    assert Client.made[str(SOCKETS[2])].live == ["z"]


def test_one_that_is_lost_at_that_moment_is_passed_over(links: EngineLinks) -> None:
    def refuse(id: str, fields: dict[str, Any]) -> None:
        raise RequestError("UNAVAILABLE", "there is no connection to the engine")

    for client in clients()[:2]:
        client.submit = refuse  # type: ignore[method-assign]
    for n in range(3):
        links.submit(str(n), {})
    assert clients()[2].live == ["0", "1", "2"]

    def too_large(id: str, fields: dict[str, Any]) -> None:
        raise RequestError("INVALID_ARGUMENT", "too large")

    for client in clients():
        client.submit = too_large  # type: ignore[method-assign]
    with pytest.raises(RequestError, match="too large"):
        links.submit("x", {})


def test_a_service_of_several_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(link_module, "EngineClient", Client)
    Client.made = {}
    lost: list[str] = []
    service = Service(
        fake_pb, SOCKETS[0], lambda: lost.append("first"), unary=True,
        others=[(SOCKETS[1], lambda: lost.append("second"))], load=Load(tmp_path / "load", "minimax_m2", 2),
    )  # fmt: skip
    for link in service.links:
        link.connect(1)
    assert service.link is not service.links[0]
    Client.made[str(SOCKETS[1])].die()
    assert lost == ["second"]
    service.close()


class Gate:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


def test_the_server_is_ready_while_one_serves() -> None:
    gate = Gate()
    (alone,) = replica_gates(gate, 1)  # type: ignore[arg-type]
    assert alone is gate
    first, second = replica_gates(gate, 2)  # type: ignore[arg-type]
    first.close()
    first.close()
    first.open()
    assert gate.calls == []
    first.close()
    second.close()
    assert gate.calls == ["close"]
    second.open()
    first.open()
    assert gate.calls == ["close", "open"]
    first.leave()
    second.clear()
    assert gate.calls[2:] == ["leave", "clear"]


class Engine:
    """Stands for EngineProcess; the socket "/bad" does not start."""

    made: list[Engine]

    def __init__(self, bundle: str, socket: str, **share: Any) -> None:
        self.socket, self.share, self.starts, self.stops = socket, share, 0, 0
        Engine.made.append(self)

    def start(self) -> None:
        self.starts += 1

    def wait_ready(self, timeout: float) -> None:
        if self.socket == "/bad":
            raise BundleError("it did not start")

    def stop(self, timeout: float) -> None:
        self.stops += 1


def fleet(monkeypatch: pytest.MonkeyPatch, sockets: list[str], said: list[str]) -> tuple[Fleet, list[Gate]]:
    monkeypatch.setattr(keeper_module, "EngineProcess", Engine)
    Engine.made = []
    gates = [Gate() for _ in sockets]
    keepers = [
        Keeper(
            Path("/b"), Path(s), Gate(), gates[n], said.append,  # type: ignore[arg-type]
            Replica(n, Path(s), threads=3, environment={"A": str(n)}),
        )
        for n, s in enumerate(sockets)
    ]  # fmt: skip
    return Fleet(keepers), gates


def test_a_fleet_restarts_what_it_lost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    engines, gates = fleet(monkeypatch, ["/a", "/b"], said)
    engines.start()
    assert [engine.share["threads"] for engine in Engine.made] == [3, 3]
    assert [engine.share["environment"] for engine in Engine.made] == [{"A": "0"}, {"A": "1"}]
    engines.lost(1)
    until(lambda: gates[1].calls[-1] == "open")
    assert [engine.starts for engine in Engine.made] == [1, 2]
    assert said[0].startswith("replica 1: the engine process is gone")
    engines.stop()
    assert all(engine.stops for engine in Engine.made)
    assert not [thread for thread in threading.enumerate() if thread.name == "mm2c-engine-keeper"]


def test_a_fleet_that_cannot_start_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    engines, _ = fleet(monkeypatch, ["/a", "/bad"], [])
    with pytest.raises(BundleError, match="it did not start"):
        engines.start()
    assert all(engine.stops for engine in Engine.made)


def write_manifest(folder: Path, engine: str, **mapping: int) -> Path:
    (folder / "manifest.json").write_text(json.dumps({"engine": engine, "mapping": mapping}))
    return folder


def test_replicas_share_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = tmp_path / "engine.sock"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    assert replicas_of(tmp_path, socket, {}) == [Replica(0, socket)]  # no manifest: the engine says so
    for one in ({"tp": 2, "ep": 2}, {"tp": 1, "ep": 4, "dp": 4}, {"tp": 2, "ep": 1, "dp": 1}):
        assert replicas_of(write_manifest(tmp_path, "cuda", **one), socket, {}) == [Replica(0, socket)]
    made = replicas_of(write_manifest(tmp_path, "onnxruntime", tp=2, ep=4, dp=8), socket, {})
    assert [own.socket.name for own in made] == [
        "engine.sock",
        "engine.sock.1",
        "engine.sock.2",
        "engine.sock.3",
    ]
    assert {(own.threads, len(own.environment)) for own in made} == {(1, 0)}
    assert not {own.socket for own in made} & {gate_flag(socket), load_file(socket)}


@pytest.mark.parametrize(
    ("visible", "shares"),
    [
        (None, ["0,1", "2,3"]),
        ("7,6,5,4,3", ["7,6", "5,4"]),
        ("GPU-a, GPU-b,GPU-c,GPU-d", ["GPU-a,GPU-b", "GPU-c,GPU-d"]),
    ],
)
def test_every_replica_sees_its_own_gpus(tmp_path: Path, visible: str | None, shares: list[str]) -> None:
    given = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    for engine, more in (("cuda", {}), ("onnxruntime", {"MM2C_PROVIDER": "cuda"})):
        bundle = write_manifest(tmp_path, engine, tp=2, ep=1, dp=2)
        made = replicas_of(bundle, tmp_path / "s", {**given, **more})
        assert [own.environment["CUDA_VISIBLE_DEVICES"] for own in made] == shares
        assert [own.threads for own in made] == [None, None]


@pytest.mark.parametrize("visible", ["", "0,1,2"])
def test_too_few_gpus_are_told(tmp_path: Path, visible: str) -> None:
    bundle = write_manifest(tmp_path, "cuda", tp=2, ep=1, dp=2)
    with pytest.raises(BundleError, match="2 replicas of 2 ranks need 4 GPUs, CUDA_VISIBLE_DEVICES names"):
        replicas_of(bundle, tmp_path / "s", {"CUDA_VISIBLE_DEVICES": visible})


def test_a_process_gets_the_environment_of_its_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(launcher.subprocess, "Popen", lambda command, **options: given.update(options))
    launcher.EngineProcess("b", str(tmp_path / "s"), environment={"CUDA_VISIBLE_DEVICES": "3"}).start()
    assert given["env"]["CUDA_VISIBLE_DEVICES"] == "3"
    assert "PATH" in given["env"]


def test_counters_are_added_up() -> None:
    reports = [{**dict.fromkeys(SUMMED, n), "rows_histogram": {"10": n, str(n): 1}} for n in (2, 3)]
    total = summed(reports)
    assert total["generated_tokens"] == total["running"] == 5
    assert list(total["rows_histogram"].items()) == [("2", 1), ("3", 1), ("10", 5)]
    assert total["replicas"] == reports
