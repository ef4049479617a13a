"""A small Label Studio: an HTTP server that keeps projects, files, tasks and annotations as version 1.23 does.

As far as `vabal.adapters.label_studio` asks it; `python -m benchmarks.studio` tries the same with a real one.
"""

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

TOKEN, PERSONAL = "small", "some.personal.token"
ACCESS = 5  # calls that a personal token buys
Fault = Callable[[str, str], str]


class SmallStudio(ThreadingHTTPServer):
    """`fault(method, path)` may say `before` or `after` (the answer is dropped before or after it was made true), or a
    status that is answered instead; it may also kill somebody."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.RLock()
        self.fault: Fault = lambda _method, _path: ""
        self.projects: dict[int, dict[str, Any]] = {}
        self.files: dict[int, dict[str, Any]] = {}
        self.tasks: dict[int, dict[str, Any]] = {}
        self.storages: dict[int, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.access = 0  # calls that a personal token's access is still good for
        self.numbers = itertools.count(1)
        self._clock = itertools.count()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """Clients that died are no news."""

    def now(self) -> str:
        """Later each time."""
        return (datetime(2026, 3, 4, tzinfo=UTC) + timedelta(hours=2 * next(self._clock))).isoformat()

    # -- what people do ----------------------------------------------------------------------------------------------

    def people_say(self, name: str, label: str | None, person: int = 1, *, skipped: bool = False) -> int:
        """An annotation of a task, by the image's name; its number."""
        [task] = [task for task in self.tasks.values() if task["data"].get("sample_id") == name]
        value = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
        number, now = next(self.numbers), self.now()
        task["annotations"].append(
            {"id": number, "result": [value] if label else [], "was_cancelled": skipped, "completed_by": person}
            | {"created_at": now, "updated_at": now}
        )
        task["updated_at"] = now
        return number

    def people_edit(self, number: int, label: str) -> None:
        task, item = self._annotation(number)
        item["result"] = [{"from_name": "label", "type": "choices", "value": {"choices": [label]}}]
        item["updated_at"] = task["updated_at"] = self.now()

    def people_delete(self, number: int) -> None:
        task, item = self._annotation(number)
        task["annotations"].remove(item)
        task["updated_at"] = self.now()

    def _annotation(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        [found] = [(t, item) for t in self.tasks.values() for item in t["annotations"] if item["id"] == number]
        return found

    def names(self) -> list[str]:
        """The images of all tasks, in order."""
        return [task["data"]["sample_id"] for task in self.tasks.values()]

    # -- what programs ask -------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        for pattern, act in (
            (r"GET projects", self._list),
            (r"POST projects", self._create),
            (r"(GET|PATCH) projects/(\d+)", self._project),
            (r"POST projects/(\d+)/import", self._import),
            (r"GET projects/(\d+)/file-uploads", self._file_list),
            (r"GET import/file-upload/(\d+)", lambda number: (200, self.files[int(number)])),
            (r"GET storages/s3", self._storage_list),
            (r"POST storages/s3", self._store),
            (r"PATCH storages/s3/(\d+)", self._restore),
            (r"GET tasks", self._task_list),
            (r"GET tasks/(\d+)", lambda number: (200, self.tasks[int(number)])),
            (r"DELETE tasks/(\d+)", lambda number: (204, self.tasks.pop(int(number)) and None)),
        ):
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                self.query, self.body = query, body
                try:
                    return act(*found.groups())
                except KeyError:
                    return 404, {"detail": "No such thing."}
        return 404, {"detail": "Not found."}

    def _list(self) -> tuple[int, Any]:
        wanted = self.query["title"].lower()
        return 200, {"next": None, "results": [p for p in self.projects.values() if wanted in p["title"].lower()]}

    def _create(self) -> tuple[int, Any]:
        number = next(self.numbers)
        self.projects[number] = {"id": number, "label_config": "<View></View>", **self.body}
        return 201, self._shown(number)

    def _project(self, method: str, number: str) -> tuple[int, Any]:
        if method == "PATCH":
            self.projects[int(number)] |= self.body
        return 200, self._shown(int(number))

    def _shown(self, number: int) -> dict[str, Any]:
        project = self.projects[number]
        found = ElementTree.fromstring(project["label_config"]).find("Choices")  # noqa: S314 -- a test's own
        names = [choice.get("value") for choice in found or ()]
        control = {"type": "Choices", "to_name": ["image"], "inputs": [{"value": "image"}], "labels": names}
        project["task_number"] = sum(task["project"] == number for task in self.tasks.values()) or None
        return project | {"parsed_label_config": {found.get("name"): control} if found is not None else {}}

    def _import(self, number: str) -> tuple[int, Any]:
        if isinstance(self.body, list):
            for task in self.body:
                made, now = next(self.numbers), self.now()
                fresh = {"id": made, "project": int(number), "annotations": [], "drafts": [], "updated_at": now}
                self.tasks[made] = {"predictions": [], **task, **fresh}
            return 201, {"task_count": len(self.body)}
        name, content = self.body
        made = next(self.numbers)
        self.files[made] = {"id": made, "file": f"upload/{number}/{made:08x}-{name}", "content": content.hex()}
        return 201, {"file_upload_ids": [made]}

    def _file_list(self, number: str) -> tuple[int, Any]:
        return 200, [file for file in self.files.values() if file["file"].startswith(f"upload/{number}/")]

    def _storage_list(self) -> tuple[int, Any]:
        project = int(self.query["project"])
        return 200, [self._told(one) for one in self.storages.values() if one["project"] == project]

    def _store(self) -> tuple[int, Any]:
        number = next(self.numbers)
        self.storages[number] = {"id": number, **self.body}
        return 201, self._told(self.storages[number])

    def _restore(self, number: str) -> tuple[int, Any]:
        self.storages[int(number)] |= self.body
        return 200, self._told(self.storages[int(number)])

    @staticmethod
    def _told(storage: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in storage.items() if "key" not in name}

    def _task_list(self) -> tuple[int, Any]:
        asked = json.loads(self.query["query"])["filters"]
        passes = all if asked["conjunction"] == "and" else any
        found = [
            task
            for _, task in sorted(self.tasks.items())
            if task["project"] == int(self.query["project"]) and passes(_holds(item, task) for item in asked["items"])
        ]
        hidden = () if self.query.get("fields") == "all" else ("annotations", "drafts")
        page = found[: int(self.query["page_size"])]
        return 200, {
            "total": len(found),
            "tasks": [{k: v for k, v in task.items() if k not in hidden} for task in page],
        }


def _holds(item: dict[str, Any], task: dict[str, Any]) -> bool:
    value: Any = task
    for key in item["filter"].removeprefix("filter:tasks:").split("."):
        value = value.get(key)
    if item["type"] == "Datetime":
        return datetime.fromisoformat(value) > datetime.fromisoformat(item["value"])
    return bool(value > item["value"] if item["operator"] == "greater" else value == item["value"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SmallStudio

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = address.path.removeprefix("/api/").rstrip("/")
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            self.server.calls.append(f"{self.command} {path}")
            fault = self.server.fault(self.command, path)
            code, said = 401, {"detail": "Invalid token."}
            if fault.isdigit():
                code, said = int(fault), {"detail": "busy"}
            elif path == "token/refresh" and self._body(content) == {"refresh": PERSONAL}:
                self.server.access = ACCESS
                code, said = 200, {"access": "for a while"}
            elif fault != "before" and self._known():
                query = {name: values[-1] for name, values in parse_qs(address.query).items()}
                code, said = self.server.answer(self.command, path, query, self._body(content))
        if fault in ("before", "after"):
            self.close_connection = True
            return
        answer = b"" if code == 204 else json.dumps(said).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _known(self) -> bool:
        """Whether it comes with a token; each access is good for some calls."""
        said = self.headers.get("Authorization")
        if said == "Bearer for a while":
            self.server.access -= 1
            return self.server.access >= 0
        return said == f"Token {TOKEN}"

    do_POST = do_PATCH = do_DELETE = do_GET

    def _body(self, content: bytes) -> Any:
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("multipart/"):
            whole: Any = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + content)
            [part] = whole.get_payload()
            return part.get_filename(), part.get_payload(decode=True)
        return json.loads(content) if content else None


@contextmanager
def small_studio() -> Iterator[SmallStudio]:
    server = SmallStudio()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
