"""A run for every round, and for every cell of a benchmark.

A run is found again by its tags before one is made, and a point of a metric that was logged is not logged twice.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Param, Run

from vabal.adapters.tracking.connection import Connection
from vabal.adapters.tracking.errors import explained
from vabal.adapters.tracking.names import (
    CELL_KEY,
    NOTE,
    PARAMS_A_CALL,
    ROUND,
    ROUND_KEY,
    SETTINGS,
    WORKSPACE,
    chunks,
    flatten,
    tag_filter,
)
from vabal.adapters.tracking.points import Points
from vabal.errors import UserError
from vabal.files import canonical_json, sha256


class Runs(Connection):
    """The runs of a workspace's experiment."""

    @explained
    def open_round(
        self,
        round_number: int,
        round_key: str,
        settings: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        *,
        inputs: Sequence[str] = (),
    ) -> str:
        """The id of the round's run: found again by workspace, round and `round_key`, else made; never doubled.

        `round_key` is the digest of the parent manifest; `settings` are logged as parameters with dotted names. Since
        MLflow's parameters cannot be changed, an unfinished run of the same round with other settings, or of other
        `inputs`, is deleted (MLflow keeps it in its bin) and a new one takes its place.
        """
        params = dict(flatten(settings))
        identity = {WORKSPACE: self.workspace, ROUND: str(round_number), ROUND_KEY: round_key}
        hashed = params | ({"inputs": list(inputs)} if inputs else {})
        settings_sha256 = sha256(canonical_json(hashed))
        experiment = self._experiment()
        if self._choose(found := self._own_runs(experiment, identity), settings_sha256) is None:
            self._client.create_run(
                experiment,
                run_name=f"round {round_number:04d}",
                tags={**(tags or {}), **identity, **self._owned, SETTINGS: settings_sha256},
            )
            found = self._own_runs(experiment, identity)
        run = self._choose(found, settings_sha256)
        if run is None:
            raise UserError(f"MLflow at {self.uri} does not list the run that it just made: look at its log")
        for other in found:
            if other.info.run_id != run.info.run_id and other.info.status != "FINISHED":
                self._client.delete_run(other.info.run_id)
        if run.info.status in ("FAILED", "KILLED"):
            self._client.update_run(run.info.run_id, status="RUNNING")
        missing = [Param(key, value) for key, value in params.items() if key not in run.data.params]
        for chunk in chunks(missing, PARAMS_A_CALL):
            self._client.log_batch(run.info.run_id, params=chunk)
        return str(run.info.run_id)

    @explained
    def log_cell(self, cell: Mapping[str, Any]) -> str:
        """One run for a benchmark's cell, its rounds as steps; the run's id. The same cell gets no second run."""
        experiment, identity = self._experiment(), {CELL_KEY: str(cell["key"])}
        named = {name: str(cell[name]) for name in ("source", "imbalance", "strategy", "seed")}
        found = self._runs(experiment, identity)
        if found and found[0].info.status == "FINISHED":
            return str(found[0].info.run_id)
        if found:
            run_id = str(found[0].info.run_id)
        else:
            title = " ".join([*list(named.values())[:3], "seed", named["seed"]])
            tags = {**named, **identity}
            run_id = str(self._client.create_run(experiment, run_name=title, tags=tags).info.run_id)
        known = self._client.get_run(run_id).data.params
        settings = {**named, "budget": cell["budget"], "initial": cell["initial"], **cell["settings"]}
        if cell.get("learner"):
            settings["learner"] = cell["learner"]
        missing = [Param(key, str(value)) for key, value in settings.items() if key not in known]
        for chunk in chunks(missing, PARAMS_A_CALL):
            self._client.log_batch(run_id, params=chunk)
        values = ("labeled", "accuracy", "balanced_accuracy", "macro_f1")
        self.log_metrics(run_id, [(name, item[name], item["round"]) for item in cell["rounds"] for name in values])
        self.close(run_id)
        return run_id

    @explained
    def log_metrics(self, run_id: str, metrics: Iterable[tuple[str, float, int]]) -> None:
        """Log (name, value, step) points. A step that the run has of that name already stays as it is."""
        if points := list(metrics):
            Points(self._client, run_id).log(points)

    def points(self, run_id: str) -> Points:
        """Of the run, for those who log now and then. Raises MLflow's own errors."""
        return Points(self._client, run_id)

    @explained
    def log_datasets(self, run_id: str, digests: Mapping[str, str], source: Mapping[str, str]) -> None:
        """Name the pools' tables as the run's inputs: digests (sha256, hexadecimal) and where the data is; no data."""
        self._client.log_inputs(
            run_id,
            [
                DatasetInput(
                    # MLflow keeps 36 characters of a digest: the whole one stands in the input's tag
                    Dataset(name, digest[:36], "code", json.dumps({"tags": dict(source)})),
                    [InputTag("mlflow.data.context", "pool"), InputTag("sha256", digest)],
                )
                for name, digest in digests.items()
            ],
        )

    @explained
    def log_artifacts(self, run_id: str, files: Iterable[Path], folder: str | None = None) -> None:
        """Put files beside the run, under `folder`; those there already are overwritten."""
        for file in files:
            self._client.log_artifact(run_id, str(file), folder)

    @explained
    def close(self, run_id: str, status: str = "FINISHED") -> None:
        """End the run. `status`: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run_id, status)

    @explained
    def describe_run(self, run_id: str, text: str) -> None:
        """What MLflow's page of the run says first, as Markdown."""
        self._client.set_tag(run_id, NOTE, text)

    @explained
    def charts_url(self) -> str:
        """Where a browser shows the charts of all rounds."""
        pages = "workflowType=machine_learning&compareRunsMode=CHART"  # else those of language models come first
        return f"{self.uri}/#/experiments/{self._experiment()}/runs?{pages}"

    def run_url(self, run_id: str) -> str:
        """Where a browser shows the run."""
        return f"{self.uri}/#/experiments/{self._experiment()}/runs/{run_id}"

    def _own_runs(self, experiment: str, identity: Mapping[str, str]) -> list[Run]:
        return [run for run in self._runs(experiment, identity) if self._is_own(run.data.tags)]

    def _runs(self, experiment: str, identity: Mapping[str, str]) -> list[Run]:
        runs = self._client.search_runs([experiment], tag_filter(identity))
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    @staticmethod
    def _choose(runs: Sequence[Run], settings_sha256: str) -> Run | None:
        return next((run for run in runs if run.data.tags.get(SETTINGS) == settings_sha256), None)
