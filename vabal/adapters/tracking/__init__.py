"""MLflow: a run for every round, a registered version for every model, and the versions' aliases.

Everything here can be repeated. Calls go through `MlflowClient`, never through MLflow's global active run.
"""

from vabal.adapters.tracking.errors import explained
from vabal.adapters.tracking.files import SERVING_SOURCE
from vabal.adapters.tracking.names import ROUND, ROUND_KEY, STATUS, WORKSPACE, metric_name
from vabal.adapters.tracking.registry import Registry, Version
from vabal.adapters.tracking.runs import Runs

__all__ = ["SERVING_SOURCE", "Tracking", "Version", "metric_name"]


class Tracking(Runs, Registry):
    """A workspace's runs and registered versions, and what becomes of both when a round is withdrawn."""

    @explained
    def withdraw(self, round_number: int, round_key: str, status: str, challenger: str | None) -> None:
        """The round's unpublished runs end as KILLED, its versions are tagged with `status`: neither counts any more.

        Where the alias points at one of them it goes back to the version `challenger`. Repeatable.
        """
        identity = {WORKSPACE: self.workspace, ROUND: str(round_number), ROUND_KEY: round_key}
        for run in self._own_runs(self._experiment(), identity):
            self._client.set_terminated(run.info.run_id, "KILLED")
            self._client.set_tag(run.info.run_id, STATUS, status)  # last: what has it is not looked at again
        pointed = self.version_by_alias("challenger")
        for version in self._versions(round_number, round_key):
            if pointed is not None and pointed.version == version.version:
                if challenger is None:
                    self._client.delete_registered_model_alias(self.model_name, "challenger")
                else:
                    self.set_alias("challenger", challenger)
            self.tag_version(version.version, {STATUS: status})
