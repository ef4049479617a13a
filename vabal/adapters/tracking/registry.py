"""The registered model: a version for every round's classifier, and the versions' aliases.

A version is found again by its tags before one is made.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from vabal.adapters.tracking.connection import Connection
from vabal.adapters.tracking.errors import ABSENT, explained, is_of_the_network
from vabal.adapters.tracking.files import MODEL_FOLDER, NETWORK_SOURCE, digests, download, save_model
from vabal.adapters.tracking.names import (
    FILES,
    ROUND,
    ROUND_KEY,
    STATUS,
    VERSIONS_A_CALL,
    WEIGHTS,
    WORKSPACE,
    tag_filter,
)
from vabal.errors import UserError
from vabal.files import canonical_json, file_sha256
from vabal.promotion.registered import classes_json


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


class Registry(Connection):
    """The versions of a workspace's registered model."""

    @explained
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
        programs: Sequence[Path] = (),
        tags: Mapping[str, str] | None = None,
    ) -> Version:
        """The round's version of the model: found again by round and weights, else uploaded and made; never doubled.

        What this clone had registered for the same round with other weights (by other settings) counts no more.
        """
        sha256 = file_sha256(weights)
        if (kept := self._kept(round_number, round_key, sha256)) is not None:
            return kept
        with tempfile.TemporaryDirectory(prefix="vabal-") as folder:
            about = classes_json(list(classes), image_size, channels, sha256)
            model = save_model(Path(folder), run_id, weights, network, about, programs)
            files = digests(model)
            self._client.log_artifacts(run_id, str(model), MODEL_FOLDER)
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{MODEL_FOLDER}"
        identity = {WORKSPACE: self.workspace, ROUND: str(round_number), ROUND_KEY: round_key, WEIGHTS: sha256}
        identity[FILES] = canonical_json(files).decode("utf-8")
        self._create_version(source, run_id, {**(tags or {}), **identity, **self._owned})
        if (kept := self._kept(round_number, round_key, sha256)) is None:
            raise UserError(f"MLflow at {self.uri} does not list the version that it just made: look at its log")
        return kept

    def _kept(self, round_number: int, round_key: str, sha256: str) -> Version | None:
        """The round's version of these weights. A second one goes, and those of other weights count no more.

        The latter only where clones are told apart: another one's version of the round is not this one's to judge.
        """
        found = self._versions(round_number, round_key)
        same = [version for version in found if version.weights_sha256 == sha256]
        for version in same[1:]:  # a request whose answer was lost was sent again
            self._client.delete_model_version(self.model_name, version.version)
        for version in found if self.owner and same else ():
            if version not in same:
                self._client.set_model_version_tag(self.model_name, version.version, STATUS, "superseded")
        return same[0] if same else None

    @explained
    def find_version(self, round_number: int, round_key: str) -> Version | None:
        """The newest version that the round made, or None."""
        found = self._versions(round_number, round_key)
        return found[-1] if found else None

    @explained
    def version(self, version: str) -> Version:
        """A version by its number. Raises UserError if there is none, or if a round did not make it."""
        try:
            return _version(self._client.get_model_version(self.model_name, version))
        except MlflowException as error:
            if error.error_code in ABSENT:
                raise UserError(
                    f"{self.model_name} has no version {version}: `vabal audit` lists the rounds with their versions"
                ) from error
            raise

    @explained
    def version_by_alias(self, alias: str) -> Version | None:
        """The version that carries the alias, or None."""
        try:
            return _version(self._client.get_model_version_by_alias(self.model_name, alias))
        except MlflowException as error:
            if error.error_code in ABSENT:
                return None
            raise

    @explained
    def set_alias(self, alias: str, version: str) -> None:
        """Move an alias. MLflow keeps no history and compares nothing: our own record decides, and this comes last."""
        self._client.set_registered_model_alias(self.model_name, alias, version)

    @explained
    def describe_version(self, version: str, text: str) -> None:
        """What MLflow's page of the version says first, as Markdown."""
        self._client.update_model_version(self.model_name, version, text)

    @explained
    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_model_version_tag(self.model_name, version, key, value)

    @explained
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

    @explained
    def files(self, version: str) -> dict[str, str]:
        """The sha256 of every file that loading `models:/<name>/<version>` reads, downloaded now."""
        source = self._client.get_model_version_download_uri(self.model_name, version)
        with tempfile.TemporaryDirectory(prefix="vabal-") as folder:
            try:
                model = download(source, Path(folder), self.uri)
            except MlflowException as error:
                if is_of_the_network(error):
                    raise
                raise UserError(f"{self.model_name} version {version} has no files at {source}: {error}") from error
            return digests(model)

    @explained
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

    def version_url(self, version: str) -> str:
        """Where a browser shows the version."""
        return f"{self.uri}/#/models/{self.model_name}/versions/{version}"

    def _versions(self, round_number: int, round_key: str) -> list[Version]:
        identity = {ROUND: str(round_number), ROUND_KEY: round_key}
        found = self._client.search_model_versions(f"name = '{self.model_name}' and {tag_filter(identity)}")
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


def _version(item: ModelVersion) -> Version:
    if ROUND not in item.tags or WEIGHTS not in item.tags:
        raise UserError(f"{item.name} version {item.version} was not made by a round (it lacks the tag {ROUND})")
    return Version(str(item.version), int(item.tags[ROUND]), item.tags[WEIGHTS], str(item.run_id), dict(item.tags))
