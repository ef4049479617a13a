"""Label Studio over its REST API: the project, a task a request, and what people said.

The one client of it, and the one translation of its errors. Label Studio has no word for "only once": a call that makes
something is tried again only after a look for what the first try may have made all the same.
"""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit
from xml.sax.saxutils import quoteattr

import httpx

from vabal.adapters import limits
from vabal.errors import Unavailable, UserError, some
from vabal.labels.answers import CHOICE
from vabal.labels.export import label_config
from vabal.labels.sync import Guess, Known
from vabal.settings.models import StudioSettings

if TYPE_CHECKING:
    from vabal.adapters.label_studio.bucket import ImageBucket

TOKEN: Final = "LABEL_STUDIO_API_KEY"  # noqa: S105 -- the variable's name, as Label Studio's own SDK has it
PAGE: Final = 100
NAMES: Final = 20  # of which one call asks: they stand in its address, which servers take 8 KB of
PAUSES_S: Final = (0.2, 1.0, 3.0)  # between tries
CONNECT_TIMEOUT_S: Final = 10.0

T = TypeVar("T")


class _Broken(Unavailable):
    """No answer came, or the server's own failure: what was asked for may have been done."""


class LabelStudio:
    """A project of a Label Studio server, found by number or title. Every call raises Unavailable, in one line.

    So does one that comes later than `settings.minutes` after this was made.
    """

    def __init__(self, settings: StudioSettings, title: str, bucket: "ImageBucket | None" = None) -> None:
        """`title` is that of the project where `settings` name none; images go into `bucket`, or by upload.

        Raises UserError if there is no token.
        """
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            raise UserError(
                f"no token for Label Studio at {settings.url}: set {TOKEN} (in Label Studio: Account & Settings, "
                "Personal Access Token or Legacy Token)"
            )
        self._url = settings.url.rstrip("/")
        self._wanted = settings.project or title
        self._token = token
        self._bucket = bucket
        self._minutes, self._until = settings.minutes, monotonic() + 60 * settings.minutes
        self._client = httpx.Client()
        self._uploads: dict[str, str] | None = None
        self._project: dict[str, Any] = {}
        if token.count(".") != 2:
            self._client.headers["Authorization"] = f"Token {token}"

    @property
    def place(self) -> str:
        """The server and the project, as one word."""
        return f"{self._url}/projects/{self._project['id']}"

    def close(self) -> None:
        self._client.close()

    # -- the project ------------------------------------------------------------------------------------------------

    def open(self, classes: Sequence[str]) -> None:
        """Find the project or make it, and see to it that it has a choice a class.

        Raises UserError for a project whose labelling interface has no choices named `label`.
        """
        with self._read():
            found = self._found() if isinstance(self._wanted, str) else self._call("GET", f"projects/{self._wanted}")
            if found is None:
                made = {"title": self._wanted, "label_config": label_config(classes)}
                found = self._once(lambda: self._call("POST", "projects", json=made), self._found)
            self._project = self._call("GET", f"projects/{int(found['id'])}")
            self._extend(classes)

    def _found(self) -> dict[str, Any] | None:
        """The project of that title; of several the oldest that has tasks."""
        projects: list[dict[str, Any]] = []
        for page in itertools.count(1):
            found = self._call("GET", "projects", params={"title": self._wanted, "page": page, "page_size": PAGE})
            projects += [project for project in found["results"] if project["title"] == self._wanted]
            if not found.get("next"):
                break
        return min(projects, key=lambda each: (not each.get("task_number"), each["id"]), default=None)

    def _extend(self, classes: Sequence[str]) -> None:
        control = (self._project.get("parsed_label_config") or {}).get(CHOICE)
        config = str(self._project.get("label_config") or "")
        if control is None and not self._project.get("task_number") and "<Choices" not in config:
            self._configure(label_config(classes))  # a project that somebody has just made
            return
        if control is None or control.get("type") != "Choices":
            raise UserError(
                f"{self.place}: its labelling interface has no choices named {CHOICE}: paste label_config.xml, which "
                "`vabal labels export` writes, or name another project (labelling.studio.project)"
            )
        missing = [name for name in classes if name not in control["labels"]]
        if not missing:
            return
        choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in missing)
        extended, count = re.subn(
            rf"(<Choices\b[^>]*\bname=[\"']{CHOICE}[\"'].*?)([ \t]*</Choices>)",
            lambda found: f"{found[1].rstrip(' ')}{choices}  </Choices>",
            config,
            count=1,
            flags=re.DOTALL,
        )
        if not count:
            raise UserError(f"{self.place}: add these choices to {CHOICE} in its labelling interface: {some(missing)}")
        self._configure(extended)

    def _configure(self, config: str) -> None:
        self._project = self._call("PATCH", f"projects/{self._project['id']}", json={"label_config": config})

    # -- what people said -------------------------------------------------------------------------------------------

    def changed(self, since: datetime | None) -> Iterator[dict[str, Any]]:
        """The tasks that were changed since then, whole, by their numbers; all of them where that is None."""
        moment = [] if since is None else [_filter("updated_at", "greater", "Datetime", _iso(since))]
        yield from self._tasks(moment, fields="all")

    def known(self, names: Sequence[str], *, whole: bool = False) -> Iterator[Known]:
        """The tasks that there are of these images; `whole`: with annotations."""
        fields = {"fields": "all"} if whole else {"include": "id,data"}
        for start in range(0, len(names), NAMES):
            asked = [_filter("data.sample_id", "equal", "String", name) for name in names[start : start + NAMES]]
            with self._read():
                for task in self._page({"conjunction": "or", "items": asked}, fields):
                    yield Known(int(task["id"]), str(task["data"]["sample_id"]), task["data"].get("round"), task)

    def _tasks(self, filters: list[dict[str, Any]], **options: str) -> Iterator[dict[str, Any]]:
        """By their numbers upwards: a task that is deleted meanwhile moves no other one out of sight."""
        last = 0
        while True:
            with self._read():
                items = [*filters, _filter("id", "greater", "Number", last)]
                page = self._page({"conjunction": "and", "items": items}, options)
                last = max((int(task["id"]) for task in page), default=last)
            if not page:
                return
            yield from page

    def _page(self, filters: dict[str, Any], options: Mapping[str, str]) -> list[dict[str, Any]]:
        query = json.dumps({"filters": filters, "ordering": ["tasks:id"]})
        asked = {"project": self._project["id"], "page_size": PAGE, "resolve_uri": "false", "query": query, **options}
        tasks: list[dict[str, Any]] = self._call("GET", "tasks", params=asked)["tasks"]
        return tasks

    # -- requests ---------------------------------------------------------------------------------------------------

    def shelve(self) -> None:
        """See to it that Label Studio can read the bucket of images: by a storage that somebody made, or one of ours.

        Ours gets today's keys each time. Raises UserError if Label Studio cannot.
        """
        if self._bucket is None:
            return
        self._bucket.open()
        wanted = self._bucket.source()
        found = self._source(wanted["bucket"])
        if found is None:
            made = {"project": self._project["id"], **wanted}
            self._once(lambda: self._call("POST", "storages/s3/", json=made), lambda: self._source(wanted["bucket"]))
        elif found.get("title") == wanted["title"]:
            self._call("PATCH", f"storages/s3/{int(found['id'])}", json=wanted)

    def _source(self, bucket: str) -> dict[str, Any] | None:
        """The storage of the project that images are resolved by: the first of that bucket."""
        with self._read():
            there = self._call("GET", "storages/s3/", params={"project": self._project["id"]})
            return next((each for each in there if each["bucket"] == bucket), None)

    def ask(self, name: str, number: int, picture: bytes, media: str, guess: Guess | None) -> None:
        """Make a task of an image, by its blind name, for the request of that round."""
        control = self._project["parsed_label_config"][CHOICE]
        store = self._upload if self._bucket is None else self._bucket.put
        file = store(_file_name(name, media), picture, media)
        data = {control["inputs"][0]["value"]: file, "sample_id": name, "round": number}
        task: dict[str, Any] = {"data": data}
        if guess is not None:
            region = {"from_name": CHOICE, "to_name": control["to_name"][0], "type": "choices"}
            result = [{**region, "value": {"choices": [guess.label]}}]
            task["predictions"] = [{"model_version": guess.model, "score": guess.score, "result": result}]
        path = f"projects/{self._project['id']}/import"

        def made() -> Known | None:
            return next((known for known in self.known([name]) if known.round == number), None)

        self._once(lambda: self._call("POST", path, json=[task]), made)

    def lost(self, tasks: Sequence[Known]) -> set[str]:
        """The names of those whose image is in the bucket no more. Label Studio keeps an upload with its project."""
        if self._bucket is None:
            return set()
        control = self._project["parsed_label_config"][CHOICE]
        addresses = {known.name: str(known.task["data"].get(control["inputs"][0]["value"])) for known in tasks}
        gone = self._bucket.lacks(addresses.values())
        return {name for name, address in addresses.items() if address in gone}

    def mend(self, name: str, picture: bytes, media: str) -> None:
        """Put the image of a task back into the bucket."""
        if self._bucket is not None:
            self._bucket.put(_file_name(name, media), picture, media)

    def _upload(self, name: str, content: bytes, media: str) -> str:
        """The address of a file in the project; one that an earlier try left there is taken."""
        path = f"projects/{self._project['id']}/import"
        files, options = {"file": (name, content, media)}, {"commit_to_project": "false"}

        def send() -> str:
            sent = self._call("POST", path, params=options, files=files)
            with self._read():
                return self._address(self._call("GET", f"import/file-upload/{sent['file_upload_ids'][0]}"))

        return self._uploaded(name) or self._once(send, lambda: self._uploaded(name, again=True))

    def _uploaded(self, name: str, *, again: bool = False) -> str | None:
        if self._uploads is None or again:
            with self._read():
                rows = self._call("GET", f"projects/{self._project['id']}/file-uploads", params={"all": "true"})
                # Label Studio puts eight digits and a hyphen in front of a file's name.
                self._uploads = {Path(row["file"]).name[9:]: self._address(row) for row in rows}
        return self._uploads.get(name)

    def _address(self, row: Mapping[str, Any]) -> str:
        return f"{urlsplit(self._url).path}/data/{row['file']}"

    def drop(self, number: int) -> bool:
        """Delete a task that nobody has begun; False where somebody has."""
        with self._read():
            task = self._call("GET", f"tasks/{number}")
            if task["annotations"] or task.get("drafts"):
                return False
        self._call("DELETE", f"tasks/{number}")
        return True

    # -- calls ------------------------------------------------------------------------------------------------------

    def _once(self, make: Callable[[], T], look: Callable[[], T | None]) -> T:
        """Make something that must not be made twice: after a try that broke off, what it made is looked for."""
        for pause in (*PAUSES_S, None):
            try:
                return make()
            except _Broken:
                if pause is None:
                    raise
                sleep(pause)
                found = look()
                if found is not None:
                    return found
        raise AssertionError  # the last try returns or raises

    def _call(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of an answer. What only reads, or means the same twice, is tried again."""
        pauses = (None,) if method == "POST" else (*PAUSES_S, None)
        for pause in pauses:
            try:
                return self._answer(method, path, **options)
            except _Broken:
                if pause is None:
                    raise
                sleep(pause)
        raise AssertionError

    def _answer(self, method: str, path: str, **options: Any) -> Any:
        if "Authorization" not in self._client.headers:
            self._renew()
        answer = self._send(method, path, **options)
        if answer.status_code == 401 and self._token.count(".") == 2:
            self._renew()
            answer = self._send(method, path, **options)
        if answer.is_success:
            return self._json(answer) if answer.content else None
        raise self._refused(answer, f"{method} {path}")

    def _renew(self) -> None:
        """A personal access token buys a short-lived one."""
        self._client.headers.pop("Authorization", None)
        answer = self._send("POST", "token/refresh", json={"refresh": self._token})
        if not answer.is_success:
            raise self._refused(answer, "POST token/refresh")
        with self._read():
            self._client.headers["Authorization"] = f"Bearer {self._json(answer)['access']}"

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The whole answer, which may come slowly, but not later than a sync may take."""
        wait = min(limits.silence(), self._left())
        options["timeout"] = httpx.Timeout(wait, connect=min(CONNECT_TIMEOUT_S, wait))
        try:
            with self._client.stream(method, f"{self._url}/api/{path}", **options) as answer:
                content = bytearray()
                for part in answer.iter_bytes():
                    content += part
                    self._left()
            headers = {"location": answer.headers.get("location", "")}
            return httpx.Response(answer.status_code, headers=headers, content=bytes(content))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unavailable(f"Label Studio does not answer at {self._url} ({error}): is it started?") from None
        except httpx.TimeoutException:
            self._left()
            raise _Broken(
                f"Label Studio at {self._url} is silent for {limits.silence():g} s ({method} {path}): try again when "
                f"it is less busy, or give it longer ({limits.SILENCE})"
            ) from None
        except httpx.HTTPError as error:
            raise _Broken(
                f"Label Studio at {self._url} broke off its answer to {method} {path} ({error}): run this again, it "
                "goes on where it was"
            ) from None

    def _left(self) -> float:
        """Seconds that the sync may still take. Raises Unavailable where there are none."""
        left = self._until - monotonic()
        if left <= 0:
            raise Unavailable(
                f"the sync with Label Studio at {self._url} was not done after {self._minutes:g} minutes "
                "(labelling.studio.minutes): what it did stays, the next one goes on from there"
            )
        return left

    def _json(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise self._strange() from None

    def _refused(self, answer: httpx.Response, what: str) -> UserError:
        said = _said(answer)
        for secret in (self._token, *(self._bucket.secrets if self._bucket else ())):
            said = said.replace(secret, "***")
        if answer.status_code == 404 and ("projects/" in what or what.startswith("GET storages/")):
            return self._no_project()
        if self._bucket is not None and "storages/" in what and answer.status_code not in (401, 403, 429):
            kind = _Broken if answer.status_code >= 500 else Unavailable
            return kind(
                f"Label Studio at {self._url} cannot use {self._bucket.address} ({answer.status_code}: {said}): "
                f"{self._bucket.hint()}"
            )
        if answer.status_code >= 500 or answer.status_code == 429:
            return _Broken(f"Label Studio at {self._url} answers {answer.status_code} to {what}: {said}")
        if answer.status_code in (401, 403):
            return Unavailable(
                f"Label Studio at {self._url} refuses the token of {TOKEN} ({what}): {said}; a legacy token has to be "
                "allowed in its organization's settings"
            )
        if answer.is_redirect:
            return UserError(f"{self._url} leads on to {answer.headers.get('location')}: name that place")
        return Unavailable(f"Label Studio at {self._url} refuses {what} ({answer.status_code}): {said}")

    def _no_project(self) -> UserError:
        if not self._project:
            return UserError(f"Label Studio at {self._url} has no project {self._wanted} (labelling.studio.project)")
        return Unavailable(
            f"Label Studio at {self._url} has no project {self._project['id']} any more: was it deleted? Run this "
            "again: one that is named by its title is made anew"
        )

    @contextmanager
    def _read(self) -> Iterator[None]:
        """What an answer lacks is the server's fault."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise self._strange() from None

    def _strange(self) -> Unavailable:
        return Unavailable(f"{self._url} does not answer as Label Studio 1.x does: is labelling.studio.url right?")


def _said(answer: httpx.Response) -> str:
    """What an answer says is wrong, in a line."""
    text = answer.text
    try:
        told = answer.json()
        text = json.dumps(told.get("validation_errors") or told.get("detail") or told)
    except (ValueError, AttributeError):
        text = "a page" if text.lstrip().startswith("<") else text
    return " ".join(text[:300].split())


def _file_name(name: str, media: str) -> str:
    return f"{name}{'.jpg' if media == 'image/jpeg' else '.png'}"


def _filter(column: str, operator: str, kind: str, value: str | int) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
