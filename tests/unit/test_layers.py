"""The one-way rule of docs/architecture.md, and one importer for each third-party package."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "exex"

LAYERS = [
    {"errors", "version"},
    {"config"},
    {"protocol"},
    {"transport", "store", "launch", "record", "files"},
    {"manager", "worker", "client", "reaper", "report"},
    {"guard", "remote", "campaign", "aio"},
    {"integrations"},
    {"listen", "reach", "rank_zero", "rank", "run", "stage", "staged_rank", "commands", "cli", "__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ONE_IMPORTER = {
    "mpi4py": "transport/mpi.py",
    "zmq": "transport/zeromq.py",
    "cloudpickle": "protocol/payload.py",
    "h5py": "record/hdf5.py",
    "click": ("cli.py", "commands"),
    "joblib": "integrations/joblib.py",
    "dask": "integrations/dask.py",
    "globus_sdk": "files/globus.py",
    "tqdm": "client/bars.py",
    "IPython": "client/bars.py",
    "parsl": "integrations/parsl.py",
}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names.add(node.module)
            if node.module == "exex":
                names.update(f"exex.{alias.name}" for alias in node.names)
    return names


def part(name: str) -> str:
    return name.split(".")[1]


def own_part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    mine = own_part(path)
    for name in imports(path):
        if not name.startswith("exex.") or part(name) == mine:
            continue
        other = part(name)
        assert LEVEL[other] < LEVEL[mine] or (LEVEL[mine] == len(LAYERS) - 1), f"{mine} must not import {name}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_third_party_packages_have_one_importer(path: Path) -> None:
    for name in imports(path):
        owner = ONE_IMPORTER.get(name.split(".")[0])
        assert owner is None or str(path.relative_to(PACKAGE)).startswith(owner), f"{path} imports {name}"


def test_every_part_has_a_layer() -> None:
    assert {own_part(path) for path in files()} <= LEVEL.keys()
