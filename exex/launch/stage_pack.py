"""Environments as archives: what belongs to one, so that it works elsewhere, and `exex pack`.

Three kinds are known by what is in them: a virtual environment (`pyvenv.cfg`), whose interpreter and standard library stand
elsewhere and are taken along as `base-python/`; a conda environment (`conda-meta/`); and any other directory, which is
taken as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

from exex.errors import ConfigError
from exex.launch.stage_codec import SUFFIXES, compressed, has_zstd
from exex.launch.stage_elf import move_search_path
from exex.launch.stage_tar import Entry, tar_stream, tree
from exex.launch.staging import BASE

MANIFEST = ".exex-pack.json"
"""First member of an archive: see `Manifest`."""

_SYSTEM = ("/usr",)
"""Prefixes of interpreters that come with a node's own system."""

_STDLIB_LEFT_OUT = ("site-packages", "dist-packages", "test", "idlelib", "turtledemo", "ensurepip", "lib2to3")


class Manifest(NamedTuple):
    """What the archive of an environment says of it."""

    origin: str = ""  # the directory that it was made of; text files that name it are rewritten
    base: str = ""  # that of its interpreter, if that is taken along
    size_bytes: int = 0  # unpacked
    files: int = 0


def manifest_of(data: bytes) -> Manifest:
    """The manifest in an archive's first member; an empty one if it cannot be read."""
    with contextlib.suppress(ValueError, TypeError):
        found = json.loads(data)
        return Manifest(**{name: type(getattr(Manifest(), name))(found[name]) for name in Manifest._fields if name in found})
    return Manifest()


class Packed(NamedTuple):
    """An environment, ready to become an archive."""

    manifest: Manifest
    entries: list[Entry]  # the manifest first


def environment(prefix: str) -> Packed:
    """What an archive of the environment, or of any directory, consists of; see `scan`."""
    steps = scan(prefix)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            packed: Packed = end.value
            return packed


def scan(prefix: str) -> Generator[None, None, Packed]:
    """The same, and a sign after each look at a file: a slow file system may take minutes. Looks at sizes; reads no contents.

    Raises:
        OSError: the directory cannot be read.
        ConfigError: it is a virtual environment whose interpreter is gone.
    """
    prefix = os.path.abspath(prefix)
    config = os.path.join(prefix, "pyvenv.cfg")
    base = ""
    found: Iterable[Entry] = tree(prefix)
    if os.path.isfile(config):
        found, base = _venv_entries(prefix, read_pyvenv(config))
    entries, sizes = [], []
    for entry in found:
        yield
        looked = os.lstat(entry.path)
        if entry.name != MANIFEST:
            entries.append(entry)
            sizes += [looked.st_size] if stat.S_ISREG(looked.st_mode) or stat.S_ISLNK(looked.st_mode) else []
    manifest = Manifest(prefix, base, sum(sizes), len(sizes))
    return Packed(manifest, [Entry(MANIFEST, "", json.dumps(manifest._asdict()).encode()), *entries])


def read_pyvenv(path: str) -> dict[str, str]:
    """The settings of a `pyvenv.cfg`."""
    with open(path, encoding="utf-8") as file:
        pairs = [line.partition("=") for line in file]
    return {name.strip().lower(): value.strip() for name, equals, value in pairs if equals}


def _venv_entries(prefix: str, config: Mapping[str, str]) -> tuple[Iterable[Entry], str]:
    """The entries, and the prefix of the interpreter if it is among them."""
    python = os.path.realpath(os.path.join(prefix, "bin", "python"))
    if not os.path.isfile(python):
        raise ConfigError(f"{prefix}/bin/python leads to {python}, which does not exist: this environment does not work")
    home = config.get("home", os.path.dirname(python))
    base = os.path.dirname(os.path.realpath(home))
    version = _version(prefix)
    if base in _SYSTEM or not version or not os.path.isfile(os.path.join(base, "lib", version, "os.py")):
        return tree(prefix), ""
    name = f"{BASE}/bin/{version}"
    interpreters = ("bin/python", "bin/python3", f"bin/{version}")
    link = os.path.join(prefix, "lib64")
    entries = [Entry(name, python), *([Entry("lib64", link)] if os.path.islink(link) else [])]
    shared = config.get("include-system-site-packages", "").lower() == "true"
    left_out = _STDLIB_LEFT_OUT[1:] if shared else _STDLIB_LEFT_OUT
    of_base = (_base_library(base, library, version, left_out) for library in ("lib", "lib64"))
    return chain(tree(prefix, leave_out=("lib64", *interpreters)), entries, chain.from_iterable(of_base)), base


def _version(prefix: str) -> str:
    """`python3.11`, by the directory of the environment's packages."""
    for library in ("lib", "lib64"):
        with contextlib.suppress(OSError):
            found = [name for name in os.listdir(os.path.join(prefix, library)) if re.fullmatch(r"python3\.\d+", name)]
            if found:
                return max(found, key=lambda name: int(name.rpartition(".")[2]))
    return ""


def _base_library(base: str, library: str, version: str, left_out: tuple[str, ...]) -> Iterator[Entry]:
    """What the interpreter needs of its own `lib`: the standard library, and the shared libraries beside it."""
    directory = os.path.join(base, library)
    if os.path.islink(directory) or not os.path.isdir(directory):
        return
    wanted = r"lib.*\.so.*" if os.path.isdir(os.path.join(base, "conda-meta")) else r"libpython.*\.so.*"
    for name in sorted(os.listdir(directory)):
        if re.fullmatch(wanted, name):
            yield Entry(f"{BASE}/{library}/{name}", os.path.join(directory, name))
    if os.path.isdir(os.path.join(directory, version)):
        for_linking = [name for name in os.listdir(os.path.join(directory, version)) if name.startswith("config-")]
        yield from tree(os.path.join(directory, version), f"{BASE}/{library}/{version}", [*left_out, *for_linking])


# ---- at the other end ----


def settle(prefix: str, manifest: Manifest) -> None:
    """Make an unpacked environment one of this place: links to its interpreter, and the paths in its scripts and `pyvenv.cfg`.

    Raises:
        OSError: a file cannot be written.
    """
    moved = {manifest.origin: prefix} if manifest.origin else {}
    if manifest.base:
        moved[manifest.base] = os.path.join(prefix, BASE)
        version = _version(prefix)
        for name in ("python", "python3", version):
            os.symlink(f"../{BASE}/bin/{version}", os.path.join(prefix, "bin", name))
        _move_libraries(os.path.join(prefix, BASE), manifest.base)
    if not moved:
        return
    _rewrite(os.path.join(prefix, "pyvenv.cfg"), moved)
    programs = os.path.join(prefix, "bin")
    if os.path.isdir(programs):
        for name in os.listdir(programs):
            _rewrite(os.path.join(programs, name), moved)


def _move_libraries(base: str, old: str) -> None:
    """Let an interpreter and its modules look for libraries where it stands now."""
    for directory, _, names in os.walk(base):
        for name in names:
            path = os.path.join(directory, name)
            if (".so" in name or os.path.basename(directory) == "bin") and not os.path.islink(path):
                move_search_path(path, old, base)


def _rewrite(path: str, moved: Mapping[str, str]) -> None:
    """Replace paths in a text file; anything else is left alone."""
    if os.path.islink(path) or not os.path.isfile(path):
        return
    with open(path, "rb") as file:
        if b"\0" in (head := file.read(4096)):
            return
        data = head + file.read()
    changed = data
    for old, new in sorted(moved.items(), key=lambda pair: -len(pair[0])):
        changed = re.sub(re.escape(old.encode()) + rb"(?=[^\w.-]|$)", new.encode().replace(b"\\", b"\\\\"), changed)
    if changed != data:
        with open(path, "wb") as file:
            file.write(changed)


# ---- exex pack ----


def pack(prefix: str | None, output: str | None) -> str:
    """Make the archive of an environment. Returns what to tell the user.

    Args:
        prefix: of the environment; None for that of this interpreter.
        output: path of the archive, whose end says how it is compressed; None for `NAME.tar.zst`, or `.tar.gz` without zstandard.

    Raises:
        ConfigError: it cannot be made.
    """
    prefix = os.path.abspath(prefix or sys.prefix)
    if not os.path.isdir(prefix):
        raise ConfigError(f"{prefix} is no directory; name that of an environment, which holds bin/python")
    output = output or f"{os.path.basename(prefix).lstrip('.') or 'env'}.tar.{'zst' if has_zstd() else 'gz'}"
    kinds = [kind for suffix, kind in SUFFIXES.items() if output.endswith(suffix)]
    if not kinds:
        raise ConfigError(f"--output is {output!r}; its end must be one of {', '.join(SUFFIXES)}")
    is_conda = os.path.isdir(os.path.join(prefix, "conda-meta"))
    if is_conda and (program := shutil.which("conda-pack")):
        return _conda_pack(program, prefix, output)
    packed = environment(prefix)
    partial = f"{output}.{os.getpid()}.part"
    try:
        with open(partial, "wb") as file:
            for piece in compressed(tar_stream(packed.entries), kinds[0]):
                file.write(piece)
        os.replace(partial, output)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}: {error.filename or partial}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)
    return "\n".join([_summary(output, packed), *_notes(prefix, packed, is_conda)])


def _conda_pack(program: str, prefix: str, output: str) -> str:
    done = subprocess.run([program, "--prefix", prefix, "--output", output, "--force"], check=False)
    if done.returncode:
        raise ConfigError(f"{program} failed with status {done.returncode}")
    return f"{output}: {os.path.getsize(output) / 1e6:,.1f} MB, made by conda-pack"


def _summary(output: str, packed: Packed) -> str:
    size = os.path.getsize(output)
    return f"{output}: {size / 1e6:,.1f} MB, {packed.manifest.files:,} files of {packed.manifest.size_bytes / 1e6:,.1f} MB"


def _notes(prefix: str, packed: Packed, is_conda: bool) -> Iterator[str]:
    """What the user should know of the archive."""
    if packed.manifest.base:
        yield f"its interpreter is taken along, from {packed.manifest.base}"
    elif os.path.isfile(os.path.join(prefix, "pyvenv.cfg")):
        yield f"every node needs the interpreter {os.path.realpath(os.path.join(prefix, 'bin', 'python'))}, which is not in it"
    if is_conda:
        yield "made without conda-pack: programs of other languages may look for their files in the old place"
    for entry in packed.entries:
        if entry.name.endswith("/direct_url.json"):
            with contextlib.suppress(OSError, ValueError), open(entry.path, encoding="utf-8") as file:
                found = json.load(file)
                if found.get("dir_info", {}).get("editable"):
                    yield f"{entry.name.split('/')[-2]} is installed editable: its source stays at {found.get('url')}"
