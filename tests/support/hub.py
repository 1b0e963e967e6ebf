"""Datasets as huggingface.co serves them: the part of its HTTP API that reading files needs."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.support.objects import _Server


class Hub:
    """What the server holds.

    Attributes:
        files: {path in the repository: bytes}; tests change it while the server runs.
        repository: "owner/name" of the only dataset.
        faults: statuses of the next answers for contents, in order.
        tokens: what came as credentials.
    """

    def __init__(self, repository, files):
        self.repository, self.files, self.url = repository, dict(files), ""
        self.faults, self.tokens = [], set()


def _entry(path, data):
    return {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest(),
    }


def _tree(files, folder, deep):
    """What lies in a folder, or below it: files, and folders before what is in them."""
    found = {}
    for name, data in files.items():
        if folder and not name.startswith(f"{folder}/"):
            continue
        below = name[len(folder) + 1 if folder else 0 :].split("/")
        for depth in range(1, len(below) if deep else min(len(below), 2)):
            path = "/".join([*filter(None, [folder]), *below[:depth]])
            found[path] = {"type": "directory", "path": path, "oid": "0" * 40}
        if deep or len(below) == 1:
            found[name] = _entry(name, data)
    return list(found.values())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.hub.repository in self.path:
            self.hub.tokens.add(self.headers.get("Authorization"))
        path = unquote(urlsplit(self.path).path)
        repository = re.escape(self.hub.repository)
        if found := re.fullmatch(rf"/datasets/{repository}/resolve/main/(.*)", path):
            self._content(self.hub.files.get(found[1]))
            return
        if found := re.fullmatch(rf"/api/datasets/{repository}/tree/main/?(.*)", path):
            deep = dict(parse_qsl(urlsplit(self.path).query)).get("recursive", "").lower() == "true"
            if inside := _tree(self.hub.files, found[1], deep):
                self._json(inside)
                return
        if re.fullmatch(rf"/api/datasets/{repository}(/revision/main)?", path):
            self._json({"id": self.hub.repository, "sha": "0" * 40, "siblings": []})
            return
        self._missing("EntryNotFound" if self.hub.repository in path else "RepoNotFound")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        assert self.path == f"/api/datasets/{self.hub.repository}/paths-info/main"
        asked = [value for key, value in parse_qsl(body) if key == "paths"]
        files = self.hub.files
        self._json([_entry(path, files[path]) for path in asked if path in files])

    def _content(self, data):
        if data is None:
            self._missing("EntryNotFound")
            return
        if self.hub.faults:
            self._send(self.hub.faults.pop(0), b"", {})
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        assert asked, "a whole file was asked for"
        first, last = map(int, asked.groups())
        part = data[first : last + 1]
        place = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"}
        self._send(206, part, place)

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code):
        self._send(404, b'{"error": "not found"}', {"X-Error-Code": code})

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(repository, files):
    """A dataset behind a server on this machine."""
    hub = Hub(repository, files)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
