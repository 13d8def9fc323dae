"""Http, Ftp, Rsync and Globus against servers of this machine."""

import hashlib
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from exex.errors import ConfigError, TransferError
from exex.files import Ftp, Globus, Http, Rsync, transfer
from exex.files.file import File
from exex.files.rsync import remote
from tests import servers

CONTENT = bytes(range(256)) * 4000
SUM = hashlib.sha256(CONTENT).hexdigest()


def fetched(staging, url, path, **options):
    """Fetch as a stage task does; the content."""
    transfer.fetch(staging, File(url, **options).at(str(path)))
    return path.read_bytes()


def sent(staging, path, url):
    """Send as a stage task does."""
    return transfer.send(staging, File(url).at(str(path)))


@pytest.fixture
def here(tmp_path):
    return tmp_path / "here" / "data.bin"


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.bin"
    path.write_bytes(CONTENT)
    return path


# ---- http ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def web(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with servers.Web({"/data.bin": CONTENT, "/empty": b""}) as server:
        yield server


def quick(**options):
    return Http(pause_s=0.0, timeout_s=20.0, **options)


def test_http_gets_a_file(web, here):
    assert fetched(quick(), f"{web.url}/data.bin?version=1", here, sha256=SUM) == CONTENT
    assert [(asked.method, asked.path) for asked in web.asked] == [("GET", "/data.bin?version=1")]
    assert fetched(quick(), f"{web.url}/empty", here) == b""


def test_http_goes_on_where_it_broke_off(web, here):
    web.troubles.extend([100_000, 503, 200_000])
    assert fetched(quick(tries=4), f"{web.url}/data.bin", here, sha256=SUM) == CONTENT
    assert [asked.headers.get("Range") for asked in web.asked] == [None, "bytes=100000-", "bytes=100000-", "bytes=300000-"]


def test_http_begins_anew_if_the_file_has_changed(web, here):
    web.troubles.append(100_000)
    staging = quick(tries=1)
    part = here.with_name("part")
    here.parent.mkdir()
    with pytest.raises(OSError, match="the connection broke after 100,000 of 1,024,000 bytes"):
        staging.fetch(File(f"{web.url}/data.bin"), str(part))
    web.content["/data.bin"], web.etag = CONTENT[::-1], '"2"'
    staging.fetch(File(f"{web.url}/data.bin"), str(part))
    assert part.read_bytes() == CONTENT[::-1]


def test_http_begins_anew_if_the_server_cannot_go_on(web, here):
    web.etag = ""
    web.troubles.append(100_000)
    assert fetched(quick(), f"{web.url}/data.bin", here) == CONTENT
    assert [asked.headers.get("Range") for asked in web.asked] == [None, None]


@pytest.mark.parametrize(("status", "times"), [(404, 1), (403, 1), (500, 3), (503, 3)])
def test_http_says_what_the_server_says(web, here, status, times):
    web.troubles.extend([status] * 3)
    with pytest.raises(TransferError, match=rf"data\.bin cannot be fetched to .*the server says {status}"):
        fetched(quick(), f"{web.url}/data.bin", here)
    assert len(web.asked) == times
    assert list(here.parent.iterdir()) == []


def test_http_without_a_server(here):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a"
        with pytest.raises(TransferError, match=r"by Http, 3 times: the server cannot be reached.*refused"):
            fetched(quick(), url, here)


def test_http_gives_up_a_server_that_says_nothing(here):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
        with pytest.raises(TransferError, match="timed out"):
            fetched(Http(tries=1, timeout_s=0.05), url, here)


def test_http_tells_who_asks_but_nobody_else(web, here):
    with servers.Web({"/data.bin": CONTENT}) as other:
        web.troubles.append(f"{other.url}/data.bin")
        staging = pickle.loads(pickle.dumps(quick(headers={"X-Token": "t"})))
        assert fetched(staging, web.url.replace("//", "//me:se%20cret@") + "/data.bin", here) == CONTENT
        assert web.asked[0].headers["Authorization"] == "Basic bWU6c2UgY3JldA=="
        assert web.asked[0].headers["X-Token"] == "t"
        assert not {"Authorization", "X-Token"} & set(other.asked[0].headers)


def test_http_puts_a_file(web, mine):
    web.troubles.append(503)
    assert sent(quick(), mine, f"{web.url}/out.bin") == (SUM, len(CONTENT))
    assert web.content["/out.bin"] == CONTENT
    web.troubles.append(405)
    with pytest.raises(TransferError, match=r"cannot be sent from .*the server says 405"):
        sent(quick(), mine, f"{web.url}/out.bin")


# ---- ftp ----------------------------------------------------------------------------------------------------------------


class FtpServer:
    """A server of pyftpdlib: anonymous reads, "me" with the password "se cret" writes."""

    def __init__(self, root: Path) -> None:
        authorizers = pytest.importorskip("pyftpdlib.authorizers", reason="pyftpdlib is not installed: pip install exex[tests]")
        from pyftpdlib.handlers import FTPHandler
        from pyftpdlib.servers import FTPServer

        authorizer = authorizers.DummyAuthorizer()
        authorizer.add_anonymous(str(root))
        authorizer.add_user("me", "se cret", str(root), perm="elradfmwMT")
        self.handler = type("Handler", (FTPHandler,), {"authorizer": authorizer, "auth_failed_timeout": 0})
        self._server = FTPServer(("127.0.0.1", 0), self.handler)
        self.port = self._server.address[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while not self._stop.is_set():
            self._server.serve_forever(timeout=0.01, blocking=False)

    def __enter__(self) -> "FtpServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._server.close_all()


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "my data.bin").write_bytes(CONTENT)
    return root


@pytest.fixture
def ftp(root):
    with FtpServer(root) as server:
        yield server


def test_ftp_gets_a_file(ftp, here):
    assert fetched(Ftp(tries=1), f"ftp://127.0.0.1:{ftp.port}/my%20data.bin", here, sha256=SUM) == CONTENT


def test_ftp_says_what_the_server_says(ftp, here):
    with pytest.raises(TransferError, match=r"none cannot be fetched to .*: the server says 550"):
        fetched(Ftp(pause_s=0), f"ftp://127.0.0.1:{ftp.port}/none", here)
    with pytest.raises(TransferError, match="the server says 530") as caught:
        fetched(Ftp(pause_s=0), f"ftp://me:wrong@127.0.0.1:{ftp.port}/none", here)
    assert "wrong" not in str(caught.value)
    with pytest.raises(TransferError, match="names no file"):
        fetched(Ftp(pause_s=0), f"ftp://127.0.0.1:{ftp.port}/directory/", here)


def test_ftp_goes_on_where_it_broke_off(ftp, here):
    asked = []
    real = ftp.handler.ftp_REST
    ftp.handler.ftp_REST = lambda self, line: asked.append(line) or real(self, line)
    staging, part = Ftp(tries=1), here.with_name("part")
    here.parent.mkdir()
    file = File(f"ftp://127.0.0.1:{ftp.port}/my%20data.bin")
    staging.fetch(file, str(part))
    os.truncate(part, 100_000)
    staging.fetch(file, str(part))
    assert part.read_bytes() == CONTENT
    assert asked == ["100000"]


def test_ftp_begins_anew_if_the_file_has_changed(ftp, root, here):
    staging, part = Ftp(tries=1), here.with_name("part")
    here.parent.mkdir()
    file = File(f"ftp://127.0.0.1:{ftp.port}/my%20data.bin")
    staging.fetch(file, str(part))
    os.truncate(part, 100_000)
    (root / "my data.bin").write_bytes(CONTENT[::-1] + b"more")
    staging.fetch(file, str(part))
    assert part.read_bytes() == CONTENT[::-1] + b"more"


def test_ftp_sends_a_file_under_another_name_first(ftp, root, mine):
    stored = []
    real = ftp.handler.ftp_STOR
    ftp.handler.ftp_STOR = lambda self, path, mode="w": stored.append(os.path.basename(path)) or real(self, path, mode)
    assert sent(Ftp(tries=1), mine, f"ftp://me:se%20cret@127.0.0.1:{ftp.port}/out.bin") == (SUM, len(CONTENT))
    assert (root / "out.bin").read_bytes() == CONTENT
    assert sorted(os.listdir(root)) == ["my data.bin", "out.bin"]
    [name] = stored
    assert name.startswith(".out.bin.") and name.endswith(".part")
    with pytest.raises(TransferError, match="the server says 550"):
        sent(Ftp(tries=1), mine, f"ftp://127.0.0.1:{ftp.port}/out.bin")  # anonymous


# ---- rsync --------------------------------------------------------------------------------------------------------------

needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="there is no program rsync: apt-get install rsync")


@pytest.fixture
def daemon(tmp_path, root):
    """The port of a daemon of rsync, started for each connection as inetd would."""
    config = tmp_path / "rsyncd.conf"
    config.write_text(
        f"use chroot = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n"
        f"[data]\npath = {root}\nread only = no\n[locked]\npath = {root}\nauth users = me\nsecrets file = {tmp_path}/secrets\n"
    )
    (tmp_path / "secrets").write_text("me:se cret\n")
    (tmp_path / "secrets").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    command = ["rsync", "--daemon", f"--config={config}"]
                    subprocess.run(command, stdin=connection, stdout=connection, stderr=subprocess.DEVNULL, timeout=60)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@needs_rsync
def test_rsync_of_a_daemon(daemon, root, here, mine):
    staging = Rsync(tries=1, timeout_s=20)
    url = f"rsync://127.0.0.1:{daemon}/data"
    assert fetched(staging, f"{url}/my%20data.bin", here, sha256=SUM) == CONTENT
    assert sent(staging, mine, f"{url}/out.bin") == (SUM, len(CONTENT))
    assert (root / "out.bin").read_bytes() == CONTENT
    with pytest.raises(TransferError, match=r"rsync ended with 23: .*No such file"):
        fetched(staging, f"{url}/none", here)
    with pytest.raises(TransferError, match=r"rsync ended with 5: .*Unknown module"):
        fetched(staging, f"rsync://127.0.0.1:{daemon}/other/none", here)


@needs_rsync
def test_rsync_with_a_password(daemon, here):
    url = f"127.0.0.1:{daemon}/locked/my%20data.bin"
    assert fetched(Rsync(tries=1, timeout_s=20), f"rsync://me:se%20cret@{url}", here) == CONTENT
    with pytest.raises(TransferError, match=r"rsync ended with 5: .*auth failed") as caught:
        fetched(Rsync(tries=1, timeout_s=20), f"rsync://me:wrong@{url}", here)
    assert "wrong" not in str(caught.value)


@needs_rsync
def test_rsync_by_ssh(tmp_path, root, here, mine, monkeypatch):
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(  # takes its options and the host, then runs here what it is to run there
        f'#!{sys.executable}\nimport os, sys\nwords = sys.argv[1:]\nassert words[:2] == ["-o", "BatchMode=yes"], words\n'
        'at = words.index("host")\nassert words[at - 4:at] == ["-p", "2222", "-l", "me"], words\n'
        'os.execvp("rsync", words[at + 1:])\n'
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    staging, url = Rsync(tries=1), f"rsync+ssh://me@host:2222{root}"
    assert fetched(staging, f"{url}/my%20data.bin", here) == CONTENT
    assert sent(staging, mine, f"{url}/out.bin").sha256 == SUM
    assert (root / "out.bin").read_bytes() == CONTENT


def test_rsync_without_the_program(here):
    with pytest.raises(TransferError, match=r"this node has no program no-rsync, which rsync: URLs need"):
        fetched(Rsync(program="no-rsync"), "rsync://host/data/a", here)


@pytest.mark.parametrize(("code", "times"), [(10, 2), (255, 2), (23, 1)])
def test_rsync_is_tried_again_if_that_may_help(tmp_path, here, code, times):
    program, asked = tmp_path / "rsync", tmp_path / "asked"
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\necho "words of rsync" >&2\nexit {code}\n')
    program.chmod(0o755)
    with pytest.raises(TransferError, match=f"rsync ended with {code}: words of rsync"):
        fetched(Rsync(("--bwlimit=1",), program=str(program), tries=2, pause_s=0), "rsync://host/data/a", here)
    lines = asked.read_text().splitlines()
    assert len(lines) == times
    assert "--bwlimit=1 -- rsync://host/data/a " in lines[0]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("rsync://host/data/a%20b", "rsync://host/data/a b"),
        ("rsync://me:x@host:873/data/a", "rsync://me@host:873/data/a"),
        ("rsync+ssh://me@host:22/data/a", "me@host:/data/a"),
        ("rsync+ssh://[::1]/data/a", "[::1]:/data/a"),
    ],
)
def test_what_rsync_is_told(url, words):
    assert remote(File(url)) == words


@pytest.mark.parametrize("url", ["rsync://host", "rsync://host/data/", "rsync:///data/a"])
def test_urls_that_rsync_cannot_be_told(url):
    with pytest.raises(TransferError, match="the URL names no file"):
        remote(File(url))


# ---- Globus -------------------------------------------------------------------------------------------------------------

THERE, HERE = "037f054a-15cf-11e8-b611-0ac6873fc732", "ddb59aef-6d04-11e5-ba46-22000b92c6ec"


@pytest.fixture
def globus(tmp_path, root):
    pytest.importorskip("globus_sdk", reason="globus_sdk is not installed: pip install exex[globus]")
    with servers.Globus({THERE: root, HERE: tmp_path}) as service:
        yield service


def connected(globus, root, token="secret", **options):
    import globus_sdk

    def client():
        retries = globus_sdk.transport.RetryConfig(max_retries=0) if hasattr(globus_sdk.transport, "RetryConfig") else None
        more = {"retry_config": retries} if retries is not None else {"transport_params": {"max_retries": 0}}
        return globus_sdk.TransferClient(base_url=globus.url, authorizer=globus_sdk.AccessTokenAuthorizer(token), **more)

    return Globus(HERE, str(root), client=client, poll_s=0.0, tries=1, **options)


def test_globus_moves_files_both_ways(globus, tmp_path, root, here, mine):
    staging = connected(globus, tmp_path)
    here.parent.mkdir()
    assert fetched(staging, f"globus://{THERE}/my%20data.bin", here, sha256=SUM) == CONTENT
    assert sent(staging, mine, f"globus://{THERE}/results/out.bin").sha256 == SUM
    assert (root / "results" / "out.bin").read_bytes() == CONTENT
    [one, other] = globus.tasks.values()
    assert (one["source_endpoint"], one["destination_endpoint"], one["verify_checksum"]) == (THERE, HERE, True)
    assert one["DATA"][0]["destination_path"].startswith("/here/.data.bin.")
    assert (other["DATA"][0]["source_path"], other["DATA"][0]["destination_path"]) == ("/mine.bin", "/results/out.bin")
    assert globus.cancelled == []


def test_globus_says_what_the_service_says(globus, tmp_path, here):
    with pytest.raises(TransferError, match=r"Globus task .* is FAILED: No such file: /none"):
        fetched(connected(globus, tmp_path), f"globus://{THERE}/none", here)
    with pytest.raises(TransferError, match="Globus says 404 EndpointNotFound: the stand-in says EndpointNotFound"):
        fetched(connected(globus, tmp_path), "globus://no-collection/none", here)
    with pytest.raises(TransferError, match="Globus says 401 AuthenticationFailed") as caught:
        fetched(connected(globus, tmp_path, token="wrong"), f"globus://{THERE}/none", here)
    assert "wrong" not in str(caught.value)
    with pytest.raises(TransferError, match=f"is not in {tmp_path}/else, the root of the collection {HERE}"):
        fetched(connected(globus, tmp_path / "else"), f"globus://{THERE}/none", here)


def test_globus_cancels_what_takes_too_long(globus, tmp_path, here):
    globus.waits = -1
    with pytest.raises(TransferError, match=r"Globus task .* is not done after 0\.01 s: OK"):
        fetched(connected(globus, tmp_path, timeout_s=0.01), f"globus://{THERE}/my%20data.bin", here)
    assert globus.cancelled == list(globus.tasks)


def test_globus_needs_a_token(monkeypatch):
    monkeypatch.delenv("GLOBUS_TRANSFER_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="Globus needs token= or client="):
        Globus(HERE)
    monkeypatch.setenv("GLOBUS_TRANSFER_TOKEN", "t")
    pickle.loads(pickle.dumps(Globus(HERE)))


def test_globus_without_its_package(monkeypatch, here):
    monkeypatch.setitem(sys.modules, "globus_sdk", None)
    with pytest.raises(TransferError, match=r"globus: URLs need globus_sdk on the nodes .*pip install exex\[globus\]"):
        fetched(Globus(HERE, token="t"), f"globus://{THERE}/a", here)
