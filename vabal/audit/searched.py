"""What decided in a batch that was searched over features: its search walked again along the recorded picks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vabal.audit.contest import Contest
from vabal.rounds import tables
from vabal.strategies.rules import Spread, Walked
from vabal.strategies.spread import unit

_TINY: Final = 1e-30  # a gain of nothing


@dataclass(frozen=True)
class _Moment:
    """Two listed candidates at a place of the search (from 0): the one that was picked there and another one."""

    place: int
    winner: int
    loser: int
    won: float
    lost: float


class Searched:
    """A contest among the candidates of a shortlist. Here a row is one of the list.

    Raises ValueError, and what reading raises, if the list is missing or damaged.
    """

    def __init__(self, contest: Contest) -> None:
        if not isinstance(contest.rule, Spread):
            raise ValueError(f"the rule {contest.rule.name} does not search")  # noqa: TRY004
        self.contest, self._rule = contest, contest.rule
        ids, features_N_D, self._labeled_distance_N = tables.read_shortlist(contest.folder / tables.SHORTLIST_FILE)
        self._features_N_D, self._ids = features_N_D, ids
        self._unit_N_D = unit(features_N_D)
        self.rows = {sample_id: row for row, sample_id in enumerate(ids)}
        self._best = contest.keyed.take(np.array([contest.rows[sample_id] for sample_id in ids], dtype=np.int64))
        picked = [contest.ids[row] for row in contest.picked]
        self._picked = np.array(
            [self.rows[sample_id] for sample_id in picked if sample_id in self.rows], dtype=np.int64
        )

    def answer(self, rows: Sequence[int]) -> Iterator[str]:
        """What decided, in sentences; `rows` are those of the contest."""
        inside = [self.rows[self.contest.ids[row]] for row in rows if self.contest.ids[row] in self.rows]
        for row in rows:
            if self.contest.ids[row] not in self.rows:
                listed = [self.contest.rows[sample_id] for sample_id in self._ids]
                become = f"among the {len(listed)} candidates that were searched"
                yield self.contest.against_the_last(row, listed, become)
        if len(inside) == 2 and any(self._place(row) is not None for row in inside):
            moment = self._between(inside[0], inside[1])
            yield from self._told(moment)
            if self._place(moment.loser) is None:
                yield from self._nearest(moment)
            return
        for row in inside:
            alone = self._moment(row)
            yield from ["every candidate on the list was picked"] if alone is None else self._told(alone)

    # -- where it was decided ------------------------------------------------------------------------------------

    def _moment(self, row: int) -> _Moment | None:
        """Of a pick its place and the next best there; of another candidate the place at which it came nearest."""
        place = self._place(row)
        if place is None:
            gaps = [self._gap(*value_of(np.array([pick, row]))) for pick, value_of in self._walk()]
            nearest = int(np.argmin(gaps))
            return self._between(int(self._picked[nearest]), row)
        value_N = self._at(place, np.arange(len(self._ids)))
        value_N[self._picked[: place + 1]] = -np.inf
        rival = int(value_N.argmax())
        return self._between(row, rival) if np.isfinite(value_N[rival]) else None

    def _between(self, one: int, other: int) -> _Moment:
        """Where the first of the two was picked."""
        place = min(place for place in (self._place(one), self._place(other)) if place is not None)
        winner = int(self._picked[place])
        loser = other if winner == one else one
        won, lost = self._at(place, np.array([winner, loser]))
        return _Moment(place, winner, loser, float(won), float(lost))

    def _place(self, row: int) -> int | None:
        found = np.flatnonzero(self._picked == row)
        return int(found[0]) if len(found) else None

    def _at(self, place: int, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """What the rows were worth at a place."""
        _, value_of = next(islice(self._walk(), place, None))
        return np.array(value_of(rows), dtype=np.float64)

    def _walk(self) -> Iterator[tuple[int, Walked]]:
        rule, beta = self._rule, self.contest.beta
        beside = rule.beside(self._best, self.contest.budget, beta, self._labeled_distance_N)
        values = rule.walk(self._best.score_N, self._features_N_D, self._picked, beta, beside)
        return zip((int(row) for row in self._picked), values, strict=True)

    def _gap(self, won: float, lost: float) -> float:
        """In units of beta x score: worth is its exponential with `coverage`."""
        if not self._rule.looks_at_labels:
            return float(won - lost)
        return math.log(max(won, _TINY)) - math.log(max(lost, _TINY))

    def _covers_nothing(self, moment: _Moment) -> bool:
        """Whether the loser gained nothing there, so that no score would have done."""
        return self._rule.looks_at_labels and moment.lost <= 0

    # -- in words ------------------------------------------------------------------------------------------------

    def _told(self, moment: _Moment) -> Iterator[str]:
        winner, loser = self._ids[moment.winner], self._ids[moment.loser]
        there = f"at place {moment.place + 1}, where {winner} was picked,"
        if not np.isfinite(moment.lost):
            yield f"{there} the class of {loser} had no place left in the batch"
            return
        higher = self._gap(moment.won, moment.lost) / self.contest.beta
        if self._rule.looks_at_labels:
            yield f"{there} it covered {moment.won:.4g} of the doubt that was left, {loser} {moment.lost:.4g}"
            enough = f"had the samples that it covers scored {higher:.4g} higher"
        else:
            yield f"{there} beta x score + log distance was {moment.won:.4g} for it, {moment.lost:.4g} for {loser}"
            enough = f"with a score {higher:.4g} higher"
            if moment.place:
                enough += f", or {math.exp(higher * self.contest.beta / 2):.4g} times as far from the picks before"
        if self._covers_nothing(moment):
            yield f"{loser} covered nothing that was left: no score would have done"
        else:
            yield f"{loser} would have been picked there, all else equal, {enough}"
        for row in (moment.winner, moment.loser):
            yield self._surroundings(row, moment.place)

    def _nearest(self, moment: _Moment) -> Iterator[str]:
        """Where the loser came nearest, if that was elsewhere."""
        nearest = self._moment(moment.loser)
        if nearest is None or self._covers_nothing(nearest):
            return
        if nearest.place != moment.place and np.isfinite(nearest.lost):
            higher = self._gap(nearest.won, nearest.lost) / self.contest.beta
            place = f"at place {nearest.place + 1}, where {self._ids[nearest.winner]} was picked"
            yield f"{self._ids[moment.loser]} came nearest {place}: {higher:.4g} would have been enough there"

    def _surroundings(self, row: int, place: int) -> str:
        """What covered the row most, or lay nearest to it, when so many were picked."""
        before, near = self._picked[:place], list[tuple[float, str]]()
        if len(before):
            squared_P = np.maximum(2 - 2 * (self._unit_N_D[before] @ self._unit_N_D[row]), 0)
            nearest = int(squared_P.argmin())
            name = f"{self._ids[before[nearest]]}, picked at place {nearest + 1}"
            near.append((float(squared_P[nearest]), name))
        if self._labeled_distance_N is not None and np.isfinite(self._labeled_distance_N[row]):
            near.append((float(self._labeled_distance_N[row]), "a labelled image (the record does not say which)"))
        if not near:
            return f"nothing lay near {self._ids[row]} yet"
        told = [f"{name}, at a squared distance of {squared:.4g}" for squared, name in sorted(near)]
        return f"nearest to {self._ids[row]} lay {'; then '.join(told)}"
