"""The connection to an MLflow server: whose experiment and model, and whether it is there at all."""

import logging
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from vabal.adapters import limits
from vabal.adapters.tracking.errors import refused
from vabal.adapters.tracking.names import KIND, NOTE, OWNER, STATUS
from vabal.errors import Unavailable, UserError

CONNECT_S = 10.0  # a refused connection is told at once; this is for an address that swallows it


_ABOUT = """Nights of active learning in the workspace `{workspace}`: a run a round, by `vabal round`.

- `holdout/`: how good the round's classifier is, `holdout/recall/` class by class; step: the round
- `train/`, `committee/`, `vae/`: its trainings, as they went; step: the epoch
- `labels/`, `annotator_labels/`, `annotator_accuracy/`: how far people agree
- `control/`: what the uniformly drawn part of each request tells of the pool

Artifacts: `report/` the night's page and the model's card, `evaluation/`, `selection/`. What was picked and why
stands in the workspace's own record: `vabal audit`.
"""


class Connection:
    """One workspace's experiment and registered model on an MLflow server."""

    def __init__(
        self, workspace_name: str, uri: str | None = None, experiment: str = "vabal", *, owner: str = ""
    ) -> None:
        """`uri` defaults to `MLFLOW_TRACKING_URI`. Nothing is contacted yet. Raises UserError if neither is set.

        `owner` tells this clone of the workspace from others: runs and versions of an open round are found again by the
        clone that made them alone.
        """
        address = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not address:
            raise UserError("MLFLOW_TRACKING_URI is not set: start the local stack (`vabal up`) or name a server")
        _narrow_defaults()
        prefix = "" if workspace_name == "default" else f"{workspace_name}-"
        self.workspace = workspace_name
        self.owner = owner
        self.uri = address.rstrip("/")
        self.experiment_name = f"{prefix}{experiment}"
        self.model_name = f"{prefix}vabal-classifier"
        self._known_experiment: str | None = None
        self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def preflight(self) -> None:
        """One small request, not repeated. Raises Unavailable if the server is away or refuses the credentials."""
        if urlsplit(self.uri).scheme not in ("http", "https"):
            return
        try:
            # MLflow's own request: the credentials, headers and certificates that its client will use
            answer = http_request(
                get_default_host_creds(self.uri),
                "/api/2.0/mlflow/experiments/search",
                "GET",
                max_retries=0,
                timeout=(min(CONNECT_S, limits.silence()), limits.silence()),
                raise_on_status=False,
                params={"max_results": 1},
            )
        except MlflowException as error:
            if "Read timed out" in str(error):
                raise Unavailable(
                    f"MLflow at {self.uri} is there, but did not answer in {limits.silence():g} s: try again when it "
                    f"is less busy, or give it longer ({limits.SILENCE})"
                ) from error
            raise Unavailable(
                f"MLflow is down: no answer at {self.uri}: start it (`vabal up`), then run this again"
            ) from error
        if answer.status_code in (401, 403):
            raise Unavailable(refused(self.uri))
        if answer.status_code >= 500 or answer.status_code == 429:
            raise Unavailable(f"MLflow at {self.uri} answers {answer.status_code}: try again later, or look at its log")
        if answer.status_code != 200 or not answer.text.lstrip().startswith("{"):
            raise Unavailable(
                f"{self.uri} answers {answer.status_code}, as no MLflow server does: check MLFLOW_TRACKING_URI"
            )

    def _experiment(self) -> str:
        if self._known_experiment is None:
            self._known_experiment = self._find_experiment()
        return self._known_experiment

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment_name)
        about = {KIND: "custom_model_development", NOTE: _ABOUT.format(workspace=self.workspace)}
        if found is None:
            try:
                return str(self._client.create_experiment(self.experiment_name, tags=about))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(self.experiment_name)
        if found is None or found.lifecycle_stage != "active":
            raise UserError(f"MLflow's experiment {self.experiment_name} was deleted: restore it in MLflow")
        if KIND not in found.tags:  # made before it told; else people's own words stay
            for name, value in about.items():
                self._client.set_experiment_tag(found.experiment_id, name, value)
        return str(found.experiment_id)

    @property
    def _owned(self) -> dict[str, str]:
        return {OWNER: self.owner} if self.owner else {}

    def _is_own(self, tags: Mapping[str, str]) -> bool:
        """Made by this clone (or before clones were told apart), and not withdrawn."""
        return STATUS not in tags and (not self.owner or tags.get(OWNER, self.owner) == self.owner)


def _narrow_defaults() -> None:
    """MLflow's own defaults retry for minutes and load pickle. What the user has set already wins.

    Its client reads these from the environment alone; it retries connection errors, 429 and 5xx, nothing else.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # 0 s, 2 s, 4 s
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{max(limits.silence(), 1):.0f}")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # else the user's own uv.lock would travel with the model
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Files come through the server, as they went: one request each, and to S3's own address there may be no way.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # it misses pip, which uv leaves out
