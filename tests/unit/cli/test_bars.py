"""Progress bars on a terminal: how far, which of several, and how long it will take."""

import io

from rich.console import Console

from vabal.cli.bars import Bars


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(bars: Bars, width: int = 80) -> list[str]:
    out = Console(file=io.StringIO(), width=width, force_terminal=False)
    out.print(bars._progress.get_renderable())
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def test_one_bar_shows_network_after_network_and_the_time_that_is_left() -> None:
    clock = Clock()
    bars = Bars(Console(file=io.StringIO(), width=80, get_time=clock))
    for clock.now, network, epoch in ((0.0, 2, 0), (10.0, 2, 10), (20.0, 2, 20), (200.0, 2, 200)):
        bars.advance(f"train-committee, network {network} of 5", epoch, 200)
        line = shown(bars)[0]
        if epoch == 20:
            assert "train-committee, network 2 of 5" in line
            assert "20/200" in line
            assert "03:00 left" in line
    assert shown(bars)[0].rstrip().endswith(" 03:20")  # how long it took
    bars.advance("train-committee, network 3 of 5", 0, 200)
    for clock.now, epoch in ((215.0, 5), (230.0, 10)):
        bars.advance("train-committee, network 3 of 5", epoch, 200)
    bars.advance("train-vae", 1, 20)
    committee, vae = shown(bars)
    assert "network 3 of 5" in committee
    assert "09:30 left" in committee
    assert "left" not in vae  # one step tells no speed
    assert vae.startswith("train-vae ")
    assert all(len(line) <= 80 for line in (committee, vae))
