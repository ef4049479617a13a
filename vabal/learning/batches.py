"""How the samples of an epoch are shared out to its steps: in batches of nearly equal size.

A remainder of two or three samples would give batch norm the statistics of two or three, once an epoch, and its running
averages with them.
"""


def batches_of(samples: int, batch_size: int) -> int:
    """How many batches an epoch has: as many as `batch_size` needs, but none of a single sample unless that is 1.

    Batch norm has no variance of one sample, so that a batch may come out one above a `batch_size` of two.
    """
    count = -(-samples // batch_size)
    return count if batch_size == 1 else max(1, min(count, samples // 2))
