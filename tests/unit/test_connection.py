"""Where a job listens: addresses, the connection file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from exex.errors import ConfigError
from exex.launch import connection
from exex.launch.connection import Connection
from exex.launch.interfaces import bracketed, choose_addresses, parse_listen, read_interfaces, usual_addresses
from exex.protocol.named import call_named

LO, ETH, HSN, IB = ("lo", "127.0.0.1"), ("eth0", "10.0.0.5"), ("hsn0", "172.30.1.5"), ("ib0", "192.168.7.5")


@pytest.mark.parametrize(
    ("interfaces", "usual", "wanted", "chosen"),
    [
        ([LO, ETH], ["10.0.0.5"], "", ["10.0.0.5"]),
        ([LO, ETH, HSN, IB], ["172.30.1.5", "10.0.0.5"], "", ["172.30.1.5", "10.0.0.5", "192.168.7.5"]),
        ([LO, ETH], ["127.0.1.1", "8.8.8.8"], "", ["10.0.0.5"]),
        ([LO], [], "", ["127.0.0.1"]),
        ([], [], "", ["127.0.0.1"]),
        ([LO, ETH, HSN], ["10.0.0.5"], "hsn0", ["172.30.1.5"]),
        ([LO, ETH], [], "203.0.113.9", ["203.0.113.9"]),
        ([LO, ETH], [], "lo", ["127.0.0.1"]),
    ],
)
def test_addresses_are_those_that_others_can_use(interfaces, usual, wanted: str, chosen: list[str]) -> None:
    assert choose_addresses(interfaces, usual, wanted) == chosen


def test_an_interface_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"--interface ib7: .* there are lo \(127.0.0.1\), eth0 \(10.0.0.5\)"):
        choose_addresses([LO, ETH], [], "ib7")


def test_this_machine_has_interfaces() -> None:
    found = read_interfaces()
    assert ("lo", "127.0.0.1") in found
    assert choose_addresses(found, usual_addresses())


@pytest.mark.parametrize(("text", "parsed"), [("0", ("", 0)), (":5000", ("", 5000)), ("n1:80", ("n1", 80)), ("[::1]:80", ("::1", 80))])
def test_where_to_listen(text: str, parsed: tuple[str, int]) -> None:
    assert parse_listen(text) == parsed


@pytest.mark.parametrize("text", ["", "port", "n1:", "n1:x", "70000", "-1"])
def test_where_one_cannot_listen(text: str) -> None:
    with pytest.raises(ConfigError, match="accepted: PORT or HOST:PORT"):
        parse_listen(text)


def test_brackets_are_for_colons() -> None:
    assert (bracketed("::1"), bracketed("n1")) == ("[::1]", "n1")


KEY = "k" * 40
SAID = Connection(["10.0.0.5:4000"], KEY, KEY, KEY, job="12", python="3.12.1", host="n1", pid=4)


def test_a_file_is_read_as_it_was_written_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "c.json")
    old = os.umask(0)
    try:
        connection.write(path, SAID)
    finally:
        os.umask(old)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert connection.read(path) == SAID
    assert KEY not in repr(SAID).replace(f"server_key='{KEY}'", "").replace(f"client_public='{KEY}'", "")
    assert os.listdir(tmp_path) == ["c.json"]


def test_a_file_of_another_job_stays(tmp_path: Path) -> None:
    path = str(tmp_path / "c.json")
    other = Connection(["10.0.0.6:4000"], KEY, KEY, KEY)
    connection.write(path, other)
    connection.remove(path, SAID)
    assert connection.read(path) == other
    connection.remove(path, other)
    connection.remove(path, other)
    assert not os.path.exists(path)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.json").mkdir()
    with pytest.raises(OSError):
        connection.write(str(tmp_path / "c.json"), SAID)
    assert os.listdir(tmp_path) == ["c.json"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "no json", '{"format": "exex connection 1"}', '{"format": "exex connection 2"}', json.dumps({"format": "exex connection 1", "addresses": []})],
)
def test_what_is_no_connection_file_is_told_from_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is not a connection file"):
        connection.read(str(path))


def test_a_file_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    path = str(tmp_path / "c.json")
    connection.write(path, SAID)
    os.chmod(path, 0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        connection.read(path)
    with pytest.raises(ConfigError, match="there is no connection file"):
        connection.read(f"{path}.x")


def test_a_function_is_called_by_its_name() -> None:
    assert call_named("math:hypot", 3, 4) == 5.0
    assert call_named("pathlib:Path.cwd") == Path.cwd()
    with pytest.raises(ImportError, match="module math has no nothing"):
        call_named("math:nothing")
