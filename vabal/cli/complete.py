"""What a shell completes behind an option: names that are known without a workspace."""

from collections.abc import Iterable


def strategies(incomplete: str) -> list[str]:
    """A strategy's name, also behind a comma, or around which a wrapper goes."""
    from vabal.strategies import names

    before, comma, last = incomplete.rpartition(",")
    wrapper, colon, _ = last.rpartition(":")
    start = f"{before}{comma}"
    return _fitting((f"{start}{wrapper}{colon}{name}" for name in names()), incomplete)


def learners(incomplete: str) -> list[str]:
    """A learner's name or a baseline's, also behind a comma."""
    from vabal.benchmark.shallow import KINDS
    from vabal.benchmark.variants import LEARNERS

    before, comma, _ = incomplete.rpartition(",")
    return _fitting((f"{before}{comma}{name}" for name in [*LEARNERS, *KINDS]), incomplete)


def sources(incomplete: str) -> list[str]:
    """A kind of source; the path behind it is the user's."""
    from vabal.sources.registry import KINDS

    return _fitting((f"{kind}{':' * known.needs_place}" for kind, known in KINDS.items()), incomplete)


def layouts(incomplete: str) -> list[str]:
    from vabal.sources.layouts import LAYOUTS

    return _fitting(LAYOUTS, incomplete)


def learners_of_init(incomplete: str) -> list[str]:
    from typing import get_args

    from vabal.settings.learners import ClassifierSettings

    return _fitting(("auto", *get_args(ClassifierSettings.model_fields["learner"].annotation)), incomplete)


def protocols(incomplete: str) -> list[str]:
    from vabal.benchmark.protocols import PROTOCOLS

    return _fitting(PROTOCOLS, incomplete)


def _fitting(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
