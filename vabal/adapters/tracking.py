"""MLflow: a run for every round, a registered version for every model, and the versions' aliases.

Everything here can be repeated: a run and a version are found again by their tags before one is made, and a point of a
metric that was logged is not logged twice. Calls go through `MlflowClient`, never through MLflow's global active run.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from time import sleep
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

import vabal
from vabal.adapters import limits
from vabal.errors import Unavailable, UserError
from vabal.files import canonical_json, file_sha256
from vabal.promotion.registered import classes_json

with warnings.catch_warnings():
    # MLflow warns about type hints of its own (message "Any type hint is inferred as AnyType ...")
    warnings.filterwarnings("ignore", message=".*Any type hint", category=UserWarning)
    import mlflow.artifacts
    import mlflow.pyfunc

WORKSPACE, ROUND, ROUND_KEY = "vabal.workspace", "vabal.round", "vabal.round_key"
SETTINGS, WEIGHTS = "vabal.settings_sha256", "vabal.weights_sha256"
FILES = "vabal.files"  # the sha256 of every file of a version
OWNER, STATUS = "vabal.clone", "vabal.status"  # who made it; of what does not count: lost, abandoned or superseded
CELL_KEY = "vabal.cell"  # of a benchmark
MODEL_FOLDER = "model"
SERVING_SOURCE = Path(__file__).with_name("serving.py")
NETWORK_SOURCE = Path(vabal.__file__).parent / "learning" / "network.py"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "torch", "torchvision")
PREFLIGHT_SECONDS = 5.0
CUT_PAUSES_S = (0.2, 1.0)
PARAMS_A_CALL, METRICS_A_CALL, LONGEST_NAME, VERSIONS_A_CALL = 100, 1000, 250, 1000  # MLflow's own limits

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Version:
    """A registered version of the model. `version` is MLflow's number, as text; `round` the round that trained it."""

    version: str
    round: int
    weights_sha256: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def registered_files(self) -> dict[str, str]:
        """The sha256 of every file, as they were when it was registered; empty for versions of before that."""
        found: dict[str, str] = json.loads(self.tags.get(FILES, "{}"))
        return found


def _explained(method: Callable[P, T]) -> Callable[P, T]:
    """Turn MLflow's errors about the network and the credentials into Unavailable, with the way out.

    An answer that broke off is asked for again, which MLflow's client does not do; every method can be repeated.
    """

    @wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        for pause in CUT_PAUSES_S:
            try:
                return once(*args, **kwargs)
            except Unavailable as error:
                if "Connection broken" not in str(error):
                    raise
            sleep(pause)
        return once(*args, **kwargs)

    def once(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except MlflowException as error:
            if error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
                raise Unavailable(_refused()) from error
            if str(error).startswith(("API request to", "The following failures occurred while downloading")):
                raise Unavailable(f"MLflow failed while it was being used: {_one_line(error)}") from error
            raise
        except OSError as error:  # what requests raises, where MLflow lets it through (artifacts)
            if not type(error).__module__.startswith("requests"):
                raise
            response = getattr(error, "response", None)
            if getattr(response, "status_code", None) in (401, 403):
                raise Unavailable(_refused()) from error
            raise Unavailable(f"MLflow failed while it was being used: {_one_line(error)}") from error

    return wrapped


class Tracking:
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
        self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def preflight(self) -> None:
        """One small request, not repeated. Raises Unavailable if the server is away or refuses the credentials."""
        if urlsplit(self.uri).scheme not in ("http", "https"):
            return
        try:
            # MLflow's own request: the credentials, headers and certificates that its client will use
            answer = http_request(  # type: ignore[no-untyped-call]
                get_default_host_creds(self.uri),  # type: ignore[no-untyped-call]
                "/api/2.0/mlflow/experiments/search",
                "GET",
                max_retries=0,
                timeout=min(PREFLIGHT_SECONDS, limits.silence()),
                raise_on_status=False,
                params={"max_results": 1},
            )
        except MlflowException as error:
            raise Unavailable(
                f"MLflow is down: no answer at {self.uri}: start it (`vabal up`), then run this again"
            ) from error
        if answer.status_code in (401, 403):
            raise Unavailable(_refused(self.uri))
        if answer.status_code >= 500 or answer.status_code == 429:
            raise Unavailable(f"MLflow at {self.uri} answers {answer.status_code}: try again later, or look at its log")
        if answer.status_code != 200 or not answer.text.lstrip().startswith("{"):
            raise Unavailable(
                f"{self.uri} answers {answer.status_code}, as no MLflow server does: check MLFLOW_TRACKING_URI"
            )

    # -- a round's run ------------------------------------------------------------------------------------------

    @_explained
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
        params = dict(_flatten(settings))
        identity = {WORKSPACE: self.workspace, ROUND: str(round_number), ROUND_KEY: round_key}
        hashed = params | ({"inputs": list(inputs)} if inputs else {})
        settings_sha256 = hashlib.sha256(canonical_json(hashed)).hexdigest()
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
        for chunk in _chunks(missing, PARAMS_A_CALL):
            self._client.log_batch(run.info.run_id, params=chunk)
        return str(run.info.run_id)

    @_explained
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

    @_explained
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
        missing = [Param(key, str(value)) for key, value in settings.items() if key not in known]
        for chunk in _chunks(missing, PARAMS_A_CALL):
            self._client.log_batch(run_id, params=chunk)
        values = ("labeled", "accuracy", "balanced_accuracy", "macro_f1")
        self.log_metrics(run_id, [(name, item[name], item["round"]) for item in cell["rounds"] for name in values])
        self.close(run_id)
        return run_id

    @_explained
    def log_metrics(self, run_id: str, metrics: Iterable[tuple[str, float, int]]) -> None:
        """Log (name, value, step) points. A step that the run has of that name already stays as it is."""
        points = {(metric_name(name), step): float(value) for name, value, step in metrics}
        run = self._client.get_run(run_id)
        known = {name for name, _ in points} & run.data.metrics.keys()
        logged = {(name, point.step) for name in known for point in self._client.get_metric_history(run_id, name)}
        # The clock stays out of it, so that a repeated request (a lost answer) names the very same points.
        fresh = [
            Metric(name, value, run.info.start_time + step, step)
            for (name, step), value in points.items()
            if (name, step) not in logged
        ]
        for chunk in _chunks(fresh, METRICS_A_CALL):
            self._client.log_batch(run_id, metrics=chunk)

    @_explained
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

    @_explained
    def log_artifacts(self, run_id: str, files: Iterable[Path], folder: str | None = None) -> None:
        """Put files beside the run, under `folder`; those there already are overwritten."""
        for file in files:
            self._client.log_artifact(run_id, str(file), folder)

    @_explained
    def close(self, run_id: str, status: str = "FINISHED") -> None:
        """End the run. `status`: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run_id, status)

    # -- the registered model -----------------------------------------------------------------------------------

    @_explained
    def register(
        self,
        run_id: str,
        round_number: int,
        round_key: str,
        *,
        weights: Path,
        classes: Sequence[str],
        image_size: int,
        channels: int,
        network: Path = NETWORK_SOURCE,
        tags: Mapping[str, str] | None = None,
    ) -> Version:
        """The round's version of the model: found again by round and weights, else uploaded and made; never doubled.

        What this clone had registered for the same round with other weights (by other settings) counts no more.
        """
        sha256 = file_sha256(weights)
        if found := self._versions(round_number, round_key, sha256):
            self._supersede(round_number, round_key, found[0])
            return found[0]
        with tempfile.TemporaryDirectory(prefix="vabal-") as folder:
            about = classes_json(list(classes), image_size, channels, sha256)
            model = _save_model(Path(folder), run_id, weights, network, about)
            files = _digests(model)
            self._client.log_artifacts(run_id, str(model), MODEL_FOLDER)
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{MODEL_FOLDER}"
        identity = {WORKSPACE: self.workspace, ROUND: str(round_number), ROUND_KEY: round_key, WEIGHTS: sha256}
        identity[FILES] = canonical_json(files).decode("utf-8")
        self._create_version(source, run_id, {**(tags or {}), **identity, **self._owned})
        kept, *doubled = self._versions(round_number, round_key, sha256)
        for version in doubled:  # a request whose answer was lost is sent again
            self._client.delete_model_version(self.model_name, version.version)
        self._supersede(round_number, round_key, kept)
        return kept

    def _supersede(self, round_number: int, round_key: str, kept: Version) -> None:
        """Only where clones are told apart: another one's version of the round is not this one's to judge."""
        for version in self._versions(round_number, round_key) if self.owner else ():
            if version.version != kept.version:
                self._client.set_model_version_tag(self.model_name, version.version, STATUS, "superseded")

    @_explained
    def find_version(self, round_number: int, round_key: str) -> Version | None:
        """The newest version that the round made, or None."""
        found = self._versions(round_number, round_key)
        return found[-1] if found else None

    @_explained
    def version(self, version: str) -> Version:
        """A version by its number. Raises UserError if there is none, or if a round did not make it."""
        try:
            return _version(self._client.get_model_version(self.model_name, version))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise UserError(
                    f"{self.model_name} has no version {version}: `vabal audit` lists the rounds with their versions"
                ) from error
            raise

    @_explained
    def version_by_alias(self, alias: str) -> Version | None:
        """The version that carries the alias, or None."""
        try:
            return _version(self._client.get_model_version_by_alias(self.model_name, alias))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    @_explained
    def set_alias(self, alias: str, version: str) -> None:
        """Move an alias. MLflow keeps no history and compares nothing: our own record decides, and this comes last."""
        self._client.set_registered_model_alias(self.model_name, alias, version)

    @_explained
    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_model_version_tag(self.model_name, version, key, value)

    @_explained
    def all_tags(self) -> dict[str, dict[str, str]]:
        """The tags of every version of the model, by version."""
        found: dict[str, dict[str, str]] = {}
        token: str | None = None
        while True:
            page = self._client.search_model_versions(f"name = '{self.model_name}'", VERSIONS_A_CALL, page_token=token)
            found |= {str(item.version): dict(item.tags) for item in page}
            token = page.token
            if not token:
                return found

    @_explained
    def files(self, version: str) -> dict[str, str]:
        """The sha256 of every file that loading `models:/<name>/<version>` reads, downloaded now."""
        source = self._client.get_model_version_download_uri(self.model_name, version)
        with tempfile.TemporaryDirectory(prefix="vabal-") as folder:
            try:
                model = mlflow.artifacts.download_artifacts(source, dst_path=folder, tracking_uri=self.uri)
            except MlflowException as error:
                if str(error).startswith(("API request to", "The following failures")):
                    raise
                raise UserError(f"{self.model_name} version {version} has no files at {source}: {error}") from error
            return _digests(Path(model))

    @_explained
    def download_weights(self, version: str, folder: Path, sha256: str | None = None) -> Path:
        """A version's weights as a file in `folder`: safetensors alone, neither code nor pickle.

        `sha256` is what they must have: the manifest's; left out, the version's tag. Raises UserError if they differ.
        """
        found = self.version(version)
        name = f"{MODEL_FOLDER}/artifacts/weights.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(self._client.download_artifacts(found.run_id, name, str(folder)))
        if file_sha256(path) != (sha256 or found.weights_sha256):
            path.unlink()
            raise UserError(f"the weights of {self.model_name} version {version} in MLflow are not those of its round")
        return path

    def run_url(self, run_id: str) -> str:
        """Where a browser shows the run."""
        return f"{self.uri}/#/experiments/{self._experiment()}/runs/{run_id}"

    def version_url(self, version: str) -> str:
        """Where a browser shows the version."""
        return f"{self.uri}/#/models/{self.model_name}/versions/{version}"

    # -- inside -------------------------------------------------------------------------------------------------

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment_name)
        if found is None:
            try:
                return str(self._client.create_experiment(self.experiment_name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(self.experiment_name)
        if found is None or found.lifecycle_stage != "active":
            raise UserError(f"MLflow's experiment {self.experiment_name} was deleted: restore it in MLflow")
        return str(found.experiment_id)

    @property
    def _owned(self) -> dict[str, str]:
        return {OWNER: self.owner} if self.owner else {}

    def _is_own(self, tags: Mapping[str, str]) -> bool:
        """Made by this clone (or before clones were told apart), and not withdrawn."""
        return STATUS not in tags and (not self.owner or tags.get(OWNER, self.owner) == self.owner)

    def _own_runs(self, experiment: str, identity: Mapping[str, str]) -> list[Run]:
        return [run for run in self._runs(experiment, identity) if self._is_own(run.data.tags)]

    def _runs(self, experiment: str, identity: Mapping[str, str]) -> list[Run]:
        runs = self._client.search_runs([experiment], _filter(identity))
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    @staticmethod
    def _choose(runs: Sequence[Run], settings_sha256: str) -> Run | None:
        return next((run for run in runs if run.data.tags.get(SETTINGS) == settings_sha256), None)

    def _versions(self, round_number: int, round_key: str, sha256: str | None = None) -> list[Version]:
        identity = {ROUND: str(round_number), ROUND_KEY: round_key} | ({WEIGHTS: sha256} if sha256 else {})
        found = self._client.search_model_versions(f"name = '{self.model_name}' and {_filter(identity)}")
        own = (version for version in map(_version, found) if self._is_own(version.tags))
        return sorted(own, key=lambda version: int(version.version))

    def _create_version(self, source: str, run_id: str, tags: dict[str, str]) -> None:
        try:
            self._client.create_model_version(self.model_name, source, run_id, tags, await_creation_for=0)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._client.create_registered_model(
                self.model_name, description="Rounds of active learning: one version a round. See `vabal audit`."
            )
            self._client.create_model_version(self.model_name, source, run_id, tags, await_creation_for=0)


def metric_name(name: str) -> str:
    """The name as MLflow takes it: `group/name`, with other characters (in class names) as `_<hexadecimal code>_`.

    MLflow refuses names that are no clean path. Names of more than 250 characters end in a digest instead.
    """
    safe = "/".join(_coded(r"[^\w.\- :]", part) for part in name.split("/", maxsplit=1))
    if len(safe) <= LONGEST_NAME:
        return safe
    return f"{safe[: LONGEST_NAME - 17]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _coded(characters: str, text: str) -> str:
    if not text.strip("."):
        characters = r"\."
    return re.sub(characters, lambda match: f"_{ord(match[0]):x}_", text)


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
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # it misses pip, which uv leaves out


def _save_model(folder: Path, run_id: str, weights: Path, network: Path, about: bytes) -> Path:
    """The model's folder in MLflow's format, from `serving.py`, the network's source, the weights and the classes."""
    parts = folder / "parts"
    parts.mkdir()
    shutil.copyfile(weights, parts / "weights.safetensors")
    shutil.copyfile(network, parts / "network.py")
    (parts / "classes.json").write_bytes(about)
    # No input schema: MLflow's enforces one rank and one dtype, and both grey NxHxW and colour NxHxWx3 are welcome.
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "class")]
    outputs += [ColSpec(DataType.float, f"p_{name}") for name in json.loads(about)["classes"]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example", category=UserWarning)
        mlflow.pyfunc.save_model(
            path=str(folder / MODEL_FOLDER),
            python_model=str(SERVING_SOURCE),
            artifacts={path.stem: str(path) for path in sorted(parts.iterdir())},
            signature=ModelSignature(outputs=Schema(outputs)),
            # Given, for MLflow would load the model in a process of its own to find them out
            pip_requirements=[f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS],
            mlflow_model=Model(run_id=run_id, artifact_path=MODEL_FOLDER),
        )
    return folder / MODEL_FOLDER


def _digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a model's folder, by its path there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _version(item: ModelVersion) -> Version:
    if ROUND not in item.tags or WEIGHTS not in item.tags:
        raise UserError(f"{item.name} version {item.version} was not made by a round (it lacks the tag {ROUND})")
    return Version(str(item.version), int(item.tags[ROUND]), item.tags[WEIGHTS], str(item.run_id), dict(item.tags))


def _filter(tags: Mapping[str, str]) -> str:
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())


def _flatten(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(value)


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _refused(uri: str | None = None) -> str:
    where = f" at {uri}" if uri else ""
    return (
        f"MLflow{where} refuses the credentials: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
        "(or MLFLOW_TRACKING_TOKEN)"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
