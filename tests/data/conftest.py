import os
import socket
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from amc_lightning.data import cifar, sources, stl10, svhn


class _Quiet(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        super().do_GET()

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A web server on this machine: ``server.root`` is what it serves, ``server.paths`` what was asked for."""
    root = tmp_path / "served"
    root.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root))) as http:
        http.root, http.paths, http.url = root, [], f"http://127.0.0.1:{http.server_port}/"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield http
        http.shutdown()
        thread.join()


@pytest.fixture
def nowhere():
    """The URL of a port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/"


@pytest.fixture(autouse=True)
def offline(monkeypatch, nowhere):
    """Point every official URL at nobody, so that no test can download."""

    def moved(file):
        return replace(file, urls=tuple(nowhere + file.name for _ in file.urls))

    monkeypatch.setattr(sources, "MNIST_FILES", tuple(map(moved, sources.MNIST_FILES)))
    monkeypatch.setattr(svhn, "SVHN_FILES", tuple(map(moved, svhn.SVHN_FILES)))
    monkeypatch.setattr(svhn, "SVHN_EXTRA_FILE", moved(svhn.SVHN_EXTRA_FILE))
    monkeypatch.setattr(cifar, "CIFAR10_ARCHIVE", moved(cifar.CIFAR10_ARCHIVE))
    monkeypatch.setattr(stl10, "STL10_ARCHIVE", moved(stl10.STL10_ARCHIVE))


@pytest.fixture
def shared_data():
    """The folder of real data; tests that ask for it are marked ``shared_data``."""
    return Path(os.environ["AMC_SHARED_DATA"])
