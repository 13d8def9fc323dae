"""Files that are elsewhere, in real jobs: fetched once, copied once per node, sent, and nothing left on the nodes."""

from __future__ import annotations

import hashlib
import sys

import pytest

from tests.e2e.test_stores import left, options
from tests.launch import Launch
from tests.servers import Web

SCRIPT = """
import os, sys, time
import exex
from exex import File, bash_app, python_app
from exex.files import Http, Staging, use

url, sum = sys.argv[1:]
use(Http(pause_s=0.01))

class Words(Staging):  # of the script itself: pickled by value
    schemes = ("words",)

    def fetch(self, file, path):
        with open(path, "w") as out:
            out.write(file.netloc)

use(Words())

@python_app
def meet(file, i, among):  # returns when all run at the same time: on all slots of all nodes
    content = open(file).read()
    open(f"here{i}", "w").close()
    while len([name for name in os.listdir(".") if name.startswith("here")]) < among:
        time.sleep(0.002)
    return content, file.filepath

@bash_app
def count(limit, outputs=(), stdout=None):
    return f"seq {limit} > {outputs[0].filepath}; echo counted"

@python_app
def read(file):
    return open(file).read()

def once_per_node():
    found = [future.result() for future in [meet(File(f"{url}/data", sha256=sum, to="node"), i, 4) for i in range(4)]]
    assert {content for content, _ in found} == {"x" * 100_000}, found
    paths = {path for _, path in found}
    assert len(paths) == 2 and all(path.startswith(os.getcwd() + "/node") for path in paths), paths
    assert all(path.endswith("/data") for path in paths)

once_per_node()
counted = count(3, outputs=[File(f"{url}/out")], stdout=File(f"{url}/said"))
sent = counted.outputs[0].result()
print(sent.sha256, sent.size_bytes, counted.stdout.result().size_bytes)
assert read(counted.outputs[0]).result() == "1\\n2\\n3\\n"
assert read(File("words://hello")).result() == "hello"
error = read(File(f"{url}/none")).exception()
print(error.__cause__)
"""


def test_files_come_and_go(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    content = b"x" * 100_000
    with Web({"/data": content}) as web:
        web.troubles.extend([503, 40_000])
        words = (*options(launch, 3), "--slots", "2", "--record", "run.h5", "--fetch-to", "fetched")
        done = launch.workflow(3, SCRIPT, web.url, hashlib.sha256(content).hexdigest(), options=words)
        assert done.status == 0, done.err
        asked = [(each.method, each.path, each.headers.get("Range")) for each in web.asked]
        assert [each for each in asked if each[1] == "/data"] == [("GET", "/data", None)] * 2 + [("GET", "/data", "bytes=40000-")]
        assert (web.content["/out"], web.content["/said"]) == (b"1\n2\n3\n", b"counted\n")
    sums, error = done.out.splitlines()
    assert sums == f"{hashlib.sha256(web.content['/out']).hexdigest()} 6 8"
    assert " (_stage_in:http) on rank " in error and f"{web.url}/none cannot be fetched to {launch.cwd}/fetched/none" in error
    assert sorted(path.name for path in (launch.cwd / "fetched").iterdir()) == ["file"]
    assert left(launch.cwd) == []
    report = launch.finish(launch.start([sys.executable, "-m", "exex", "report", "run.h5"]))
    assert report.status == 0, report.err
    assert {"_stage_in:http", "_stage_in:words", "_stage_out:http"} <= set(report.out.split())
