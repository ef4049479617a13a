"""Learning outside rounds: `pretrain`."""

from typing import Annotated

import typer

from vabal.cli import chosen
from vabal.cli.console import bars, show
from vabal.cli.options import AsJson


def pretrain(
    use: Annotated[bool, typer.Option("--use", help="Write the lines that use it into params.yaml.")] = False,
    as_json: AsJson = False,
) -> None:
    """Learn a backbone from the pool's own images, without labels; stopped, it goes on when it is called again.

    Example: `vabal pretrain --use`
    """
    from rich.console import Console

    from vabal import pools
    from vabal.rounds import pretraining

    place = chosen.with_pools()
    with chosen.reading(place):
        known = pools.load(place.data)
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    with bars(console):
        backbone = pretraining.pretrain(place, known, place.params(), console.print)
    show(backbone, as_json)
    if use:
        typer.echo(pretraining.use(place, backbone), err=as_json)
