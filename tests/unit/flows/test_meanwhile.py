"""What a long step tells while it works: lines in the run's log, and points to MLflow that no training waits for."""

import logging
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vabal.adapters.tracking.points import Points
from vabal.flows import meanwhile
from vabal.flows.meanwhile import Lines, Stream
from vabal.learning.metrics import Metric
from vabal.progress import listening, measuring
from vabal.rounds.context import run_training


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(steps: Iterator[tuple[float, str, int, int | None]]) -> list[str]:
    said: list[str] = []
    clock = Clock()
    listener = Lines(said.append, clock)
    for clock.now, stage, done, total in steps:
        listener(stage, done, total)
    return said


def test_a_stage_is_told_in_at_most_ten_lines_and_a_quick_one_in_none() -> None:
    hours = lines_of((10.0 * epoch, "train-vae", epoch, 1000) for epoch in range(1001))
    assert len(hours) == 9 + 24  # a tenth takes 1000 s: each 300 s one comes anyway, and none at the end
    assert hours[0] == "train-vae: 30 of 1000, about 2 h 41 min left"
    minutes = lines_of((1.0 * epoch, "train-vae", epoch, 200) for epoch in range(201))
    assert minutes[:2] == ["train-vae: 30 of 200, about 2 min 50 s left", "train-vae: 60 of 200, about 2 min 20 s left"]
    assert lines_of((0.1 * epoch, "train-vae", epoch, 200) for epoch in range(201)) == []


def test_each_network_has_a_clock_of_its_own_and_what_has_no_end_is_not_told() -> None:
    first = [(0.0, "train, network 2 of 3", 0, 100), (60.0, "train, network 2 of 3", 50, 100)]
    second = [(100.0, "train, network 3 of 3", 0, 100), (140.0, "train, network 3 of 3", 80, 100)]
    assert lines_of(iter([*first, *second])) == [
        "train, network 2 of 3: 50 of 100, about 1 min 0 s left",
        "train, network 3 of 3: 80 of 100, about 10 s left",
    ]
    assert lines_of((60.0 * number, "write shards", number, None) for number in range(9)) == []


def test_a_training_tells_each_metric_and_which_network_it_is_at() -> None:
    heard: list[tuple[str, int, int | None]] = []
    measured: list[tuple[str, float, int]] = []
    names = [f"member{network}-{name}" for network in (1, 2) for name in ("loss", "accuracy")]
    metrics = [Metric(f"committee/{name}", 0.5, 1) for name in names]
    with listening(lambda *told: heard.append(told)), measuring(lambda *point: measured.append(point)):
        assert run_training("train-committee", iter(metrics), 1, networks=3) == metrics
        run_training("train-vae", iter([Metric("vae/loss", 1.0, 1)]), 2)
    assert measured == [*map(tuple, metrics), ("vae/loss", 1.0, 1)]
    assert list(dict.fromkeys(heard)) == [
        ("train-committee, network 2 of 3", 0, 1),
        ("train-committee, network 2 of 3", 1, 1),
        ("train-committee, network 3 of 3", 1, 1),
        ("train-vae", 0, 2),
        ("train-vae", 1, 2),
    ]


class Server:
    """An MLflow of one run, as its client shows it."""

    def __init__(self, history: dict[str, list[int]] | None = None) -> None:
        self.history = history or {}
        self.asked: list[str] = []
        self.logged: list[tuple[str, float, int, int]] = []

    def get_run(self, _run_id: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(start_time=1000), data=SimpleNamespace(metrics=dict(self.history)))

    def get_metric_history(self, _run_id: str, name: str) -> Any:
        self.asked.append(name)
        return [SimpleNamespace(step=step) for step in self.history[name]]

    def log_batch(self, _run_id: str, metrics: Any) -> None:
        self.logged += [(each.key, each.value, each.timestamp, each.step) for each in metrics]


def test_points_that_a_run_has_are_looked_up_once_a_name_and_stay() -> None:
    server: Any = Server({"vae/loss": [1, 2]})
    points = Points(server, "run")
    points.log([("vae/loss", 0.5, 1), ("vae/loss", 0.4, 3), ("vae/kl", 0.1, 1)])
    points.log([("vae/loss", 0.4, 3), ("vae/loss", 0.3, 4)])
    assert server.logged == [("vae/loss", 0.4, 1003, 3), ("vae/kl", 0.1, 1001, 1), ("vae/loss", 0.3, 1004, 4)]
    assert server.asked == ["vae/loss"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meanwhile, "EVERY_S", 0.02)
    monkeypatch.setattr(meanwhile, "LEAVING_S", 0.2)


@pytest.mark.usefixtures("quick")
def test_points_arrive_while_a_stage_works() -> None:
    server: Any = Server()
    with Stream(lambda: Points(server, "run"), logging.getLogger("test")) as stream:
        stream.add("train/loss", 0.5, 1)
        stream.add("train/loss", 0.4, 2)
        deadline = time.monotonic() + 10
        while len(server.logged) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [(name, step) for name, _, _, step in server.logged] == [("train/loss", 1), ("train/loss", 2)]


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_away_or_silent_costs_a_stage_a_line_or_a_moment(caplog: pytest.LogCaptureFixture) -> None:
    def away() -> Points:
        raise OSError("connection refused\nby the peer")

    with Stream(away, logging.getLogger("away")) as stream:
        stream.add("train/loss", 0.5, 1)
        time.sleep(0.2)
        stream.add("train/loss", 0.5, 2)
        time.sleep(0.1)
    [line] = caplog.messages
    assert line.endswith("connection refused by the peer")

    hung, since = threading.Event(), time.monotonic()

    def silent() -> Points:
        hung.wait(60)
        raise OSError

    with Stream(silent, logging.getLogger("silent")) as stream:
        stream.add("train/loss", 0.5, 1)
        time.sleep(0.1)
    assert time.monotonic() - since < 5
    hung.set()
