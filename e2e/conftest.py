"""The real binary, driven by the unmodified official Python SDK.

`cargo xtask test e2e` builds the binary and runs this folder; TINSMITH names another binary.
"""

import os
import pathlib
import re
import subprocess
import threading

import pytest
import tinker

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = os.environ.get("TINSMITH", str(ROOT / "target/release/tinsmith"))
NANO = ROOT / "models/nano"
START_SECONDS_MAX = 30
# Nothing here takes this long; a future that never comes fails instead of hanging.
WAIT_SECONDS = 120


class Server:
    """One `tinsmith serve` process that can be killed and started again on its port and data."""

    def __init__(self, data_dir, *models):
        self.data_dir = data_dir
        self.models = models
        self.port = 0
        self.process = None
        self.url = None
        self.log = []
        self.start()

    def start(self):
        command = [BINARY, "serve", *self.models, "--port", str(self.port), "--data-dir", str(self.data_dir)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
        found = threading.Event()
        threading.Thread(target=self._read, args=(self.process.stdout, found), daemon=True).start()
        if not found.wait(START_SECONDS_MAX):
            self.process.kill()
            raise RuntimeError("the server printed no URL:\n" + "".join(self.log))

    def _read(self, stream, found):
        for line in stream:
            self.log.append(line)
            match = re.search(r"http://[\d.]+:(\d+)", line)
            if match and not found.is_set():
                self.url, self.port = match.group(0), int(match.group(1))
                found.set()

    def kill(self):
        """What a power cut does to the process: SIGKILL, no goodbye."""
        self.process.kill()
        self.process.wait(WAIT_SECONDS)

    def stop(self):
        self.process.terminate()
        return self.process.wait(WAIT_SECONDS)

    def service(self, **options):
        return tinker.ServiceClient(base_url=self.url, api_key="tml-e2e", **options)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server that most tests share, as users do. A directory is offered under three names."""
    server = Server(
        tmp_path_factory.mktemp("data"), f"nano={NANO}", f"Qwen/Qwen3-8B={NANO}", f"other={NANO}"
    )
    yield server
    assert server.stop() == 0, "".join(server.log)


@pytest.fixture
def start(tmp_path):
    """Starts servers of a test's own."""
    servers = []

    def start(*models, data_dir=None):
        servers.append(Server(data_dir or tmp_path / f"data{len(servers)}", *models))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="module")
def start_module(tmp_path_factory):
    """Starts servers that the tests of one file share."""
    servers = []

    def start(*models):
        servers.append(Server(tmp_path_factory.mktemp("data"), *models))
        return servers[-1]

    yield start
    for server in servers:
        assert server.stop() == 0, "".join(server.log)


@pytest.fixture
def service(server):
    with server.service() as service:
        yield service
