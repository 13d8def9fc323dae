"""A small environment for staging, whose interpreter can run ranks: this one's own packages and MPI library, copied or by reference."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def make_archive(directory: Path, *, copied: bool) -> Path:
    """`env.tar` in a directory; its `bin/python` leads to this interpreter.

    Args:
        copied: what ranks import is in it (some 30 MB); else it leads to this environment (some KB).
    """
    env = directory / "env"
    venv.create(env, symlinks=True)
    packages = env / "lib" / VERSION / "site-packages"
    for name in ("msgspec", "cloudpickle", "mpi4py") if copied else ():
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin
        shutil.copytree(os.path.dirname(spec.origin), packages / name)
    if not copied:
        (packages / "all.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for path in Path(sys.prefix, "lib").iterdir():  # where mpi4py looks for the library
        if path.name.startswith("python"):
            continue
        if not copied:
            (env / "lib" / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, env / "lib" / path.name, symlinks=True)
        else:
            shutil.copy2(path, env / "lib" / path.name)
    with tarfile.open(directory / "env.tar", "w") as tar:
        tar.add(env, "env")
    return directory / "env.tar"
