"""A web server of objects in memory: byte ranges, ETags, latency, and faults on demand."""

import hashlib
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Objects:
    """What the server holds, and how it fails.

    Attributes:
        files: {name: bytes}; tests change it while the server runs.
        url: of the server.
        latency: seconds before every answer.
        faults: {name or "": the faults of its next answers, in order}: a status such as 503;
            "reset" and "short" end an answer half way, with a broken connection or without;
            "hang" sends nothing.
        without_ranges: whole objects are sent whatever was asked for.
        shifted: bytes behind what was asked for, from which a range is sent.
        asked: how often each (method, name) was asked for.
        sent: bytes of bodies.
        most: requests at the same time, at most.
    """

    def __init__(self):
        self.files, self.faults, self.etags = {}, {}, {}
        self.url, self.latency, self.without_ranges, self.shifted = "", 0.0, False, 0
        self.asked, self.sent, self.most, self.now = Counter(), 0, 0, 0
        self.lock, self.ended = threading.Lock(), threading.Event()

    def etag(self, data):
        known = self.etags.get(id(data))
        if known is None or known[0] is not data:
            known = self.etags[id(data)] = data, hashlib.sha256(data).hexdigest()[:12]
        return known[1]

    def fault(self, name):
        with self.lock:
            for key in (name, ""):
                if self.faults.get(key):
                    return self.faults[key].pop(0)
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets
    objects: Objects

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def _answer(self, with_body):
        objects, name = self.objects, self.path.lstrip("/")
        with objects.lock:
            objects.asked[self.command, name] += 1
            objects.now += 1
            objects.most = max(objects.most, objects.now)
        try:
            if objects.latency:
                time.sleep(objects.latency)
            self._send(name, with_body, objects.fault(name))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with objects.lock:
                objects.now -= 1

    def _send(self, name, with_body, fault):
        data = self.objects.files.get(name)
        if fault == "hang":
            self.objects.ended.wait(30)
            self.close_connection = True
            return
        if data is None or isinstance(fault, int):
            self.send_response(fault or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, count, code = 0, len(data), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and not self.objects.without_ranges:
            first, last = (int(place) + self.objects.shifted for place in asked.groups())
            count, code = min(last + 1, len(data)) - first, 206
            if count <= 0:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        body = data[first : first + count]
        cut = len(body) // 2 if with_body and fault in ("reset", "short") else len(body)
        self.send_response(code)
        self.send_header("ETag", f'"{self.objects.etag(data)}"')
        if code == 206:
            last = first + len(body) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(cut if fault == "short" else len(body)))
        self.end_headers()
        if with_body:
            with self.objects.lock:
                self.objects.sent += cut
            self.wfile.write(body[:cut])
        if fault == "reset":
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False


@contextmanager
def serving(files):
    """Objects behind a server on this machine."""
    objects = Objects()
    objects.files.update(files)
    handler = type("Handler", (_Handler,), {"objects": objects})
    server = _Server(("127.0.0.1", 0), handler)
    objects.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield objects
    finally:
        objects.ended.set()
        server.shutdown()
        server.server_close()
