"""An S3 server on loopback (moto), what lies in its bucket, and a server before it that misbehaves as it is told to."""

import http.client
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import pytest

from mpp.remote import s3


@contextmanager
def serve_s3() -> Iterator[Any]:
    """A client of a server with an empty bucket, which the environment names until the end."""
    boto3, moto_server = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/nowhere",
            "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        patch.setattr(s3, "_clients", {})
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client
    server.stop()


def listing(client: Any, prefix: str = "") -> dict[str, bytes]:
    """Key, without the prefix, -> bytes."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {key.removeprefix(prefix): client.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys}


def empty(client: Any) -> None:
    for key in listing(client):
        client.delete_object(Bucket="bucket", Key=key)


class Between(BaseHTTPRequestHandler):
    """Hands requests on to a store and answers back, but for those of which `server.behave` says otherwise: a status; "cut" (the connection, in the answer), "stall"
    (no answer).  `server.asked` has what was asked for: method, path, and the keys that are deleted."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do(self) -> None:
        server, length = self.server, int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        key = unquote(self.path).partition("?")[0].removeprefix("/bucket").lstrip("/")
        gone = re.findall(r"<Key>(.*?)</Key>", body.decode(errors="replace")) if self.path.endswith("?delete") else []
        with server.lock:
            word = server.behave("DELETE" if gone else self.command, gone[0] if gone else key)
            if not word:
                server.asked += [("DELETE", each) for each in gone] or [(self.command, key)]
        if word == "stall":
            server.over.wait(30)
            self.close_connection = True
        elif isinstance(word, int):
            self._answer(word, {}, b"<Error><Code>%s</Code></Error>" % CODES.get(word, "InternalError").encode())
        else:
            connection = http.client.HTTPConnection(server.behind)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection", "expect")}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data, headers = answer.read(), dict(answer.getheaders())
            connection.close()
            if word == "cut":
                headers["Content-Length"], data = str(len(data)), data[: len(data) // 2]
                self.close_connection = True
            self._answer(answer.status, headers, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


CODES = {403: "AccessDenied", 404: "NoSuchBucket", 429: "TooManyRequests", 503: "SlowDown"}


@contextmanager
def between(behind: str) -> Iterator[Any]:
    """A server in front of the one at this address (host:port)."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Between)
    server.handle_error = lambda request, address: None  # of clients that were killed
    server.behind, server.asked, server.lock, server.over = behind, [], threading.Lock(), threading.Event()
    server.behave = lambda method, key: None
    server.url, server.daemon_threads = f"http://127.0.0.1:{server.server_port}", True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
