"""`File`."""

import copy
import os
import pickle
from pathlib import Path

import pytest

from exex import File


@pytest.mark.parametrize(
    ("url", "scheme", "netloc", "path", "filename"),
    [
        ("a.txt", "file", "", "a.txt", "a.txt"),
        ("/data/a.txt", "file", "", "/data/a.txt", "a.txt"),
        ("file:///data/a.txt", "file", "", "/data/a.txt", "a.txt"),
        ("file:/data/a.txt", "file", "", "/data/a.txt", "a.txt"),
        ("file://host/data/a.txt", "file", "host", "/data/a.txt", "a.txt"),
        ("https://host:8080/data/a.txt?x=1", "https", "host:8080", "/data/a.txt", "a.txt"),
        ("what?#100%.txt", "file", "", "what?#100%.txt", "what?#100%.txt"),
        ("a:b/c.txt", "file", "", "a:b/c.txt", "c.txt"),
    ],
)
def test_parts_of_the_url(url, scheme, netloc, path, filename):
    file = File(url)
    assert (file.url, file.scheme, file.netloc, file.path, file.filename) == (url, scheme, netloc, path, filename)


def test_a_path_object_will_do():
    assert File(Path("/data/a.txt")).filepath == "/data/a.txt"


def test_it_can_be_opened_like_a_path(tmp_path):
    file = File(tmp_path / "a.txt")
    with open(file, "w") as stream:
        stream.write("x")
    assert os.path.exists(file)
    assert str(file) == os.fspath(file) == file.filepath == str(tmp_path / "a.txt")


def test_what_is_elsewhere_has_no_path_until_it_is_fetched():
    file = File("https://host/a.txt")
    with pytest.raises(ValueError, match=r"https://host/a\.txt is not on this machine"):
        file.filepath
    file.local_path = "/tmp/a.txt"
    assert file.filepath == "/tmp/a.txt"
    assert file.cleancopy().local_path is None


def test_it_survives_pickling():
    file = File("https://host/a.txt")
    file.local_path = "here"
    other = pickle.loads(pickle.dumps(file))
    assert vars(other) == vars(file)
    assert repr(other) == "<File 'https://host/a.txt' local_path='here'>"


def test_what_is_known_of_a_file_survives_a_copy():
    file = File("https://host/a.txt", sha256="A" * 64, to=Path("data"))
    assert (file.sha256, file.to, file.size_bytes) == ("a" * 64, "data", None)
    there = file.at("/there/a.txt")
    assert (there.filepath, there.url, there.sha256, there.to) == ("/there/a.txt", file.url, file.sha256, "data")
    assert file.local_path is None
    assert vars(there.cleancopy()) == vars(file)
    assert vars(copy.deepcopy(there)) == vars(there)


@pytest.mark.parametrize(
    ("url", "name", "path"),
    [
        ("https://host/a%20b.txt", "a%20b.txt", "/a b.txt"),
        ("https://host/directory/", "file", "/directory/"),
        ("https://host/a/..", "file", "/a/.."),
        ("globus://id/~/a.txt", "a.txt", "/~/a.txt"),
    ],
)
def test_what_it_is_called_here_and_there(url, name, path):
    assert (File(url).local_name(), File(url).remote_path()) == (name, path)


@pytest.mark.parametrize("wrong", [{"sha256": "abc"}, {"sha256": "g" * 64}, {"sha256": ""}, {"to": ""}])
def test_what_a_file_cannot_say_of_itself(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*https://me@host/a"):
        File("https://me:secret@host/a", **wrong)


@pytest.mark.parametrize("url", [None, 3, b"a.txt"])
def test_other_names_are_refused(url):
    with pytest.raises(TypeError):
        File(url)
