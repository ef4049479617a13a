"""Blocks of rows on several threads, with the same bits on any number of them.

A library that splits one product over threads may add up in another order on two than on one. Here each product is one
thread's, and its shape does not depend on how many there are: threads share out blocks, not sums.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

Work = Callable[[slice], None]  # on a block of rows; it writes to rows of that block only
Runner = Callable[[Work, Iterable[slice]], None]


@contextmanager
def side_by_side() -> Iterator[Runner]:
    """What runs a work on every block, on as many threads as the products of numpy would have had outside."""
    libraries = _libraries()
    threads = max((library["num_threads"] for library in libraries.info()), default=1)
    with libraries.limit(limits=1), ThreadPoolExecutor(threads) as pool:

        def run(work: Work, blocks: Iterable[slice]) -> None:
            there = list(blocks)
            spread = pool.map if threads > 1 and len(there) > 1 else map
            for _ in spread(work, there):  # raises what a work raised
                pass

        yield run


@cache
def _libraries() -> Any:
    """What multiplies matrices in this process."""
    from threadpoolctl import ThreadpoolController  # noqa: PLC0415 -- looks through the process's libraries

    return ThreadpoolController().select(user_api="blas")


def blocks(count: int, rows: int) -> Iterator[slice]:
    """Of so many rows each, the last one of what is left."""
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))
