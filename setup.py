"""Metadata is in pyproject.toml. Here: the data directories of the checkout become part of the package."""

from setuptools import find_packages, setup

DATA = ("launchers", "configs", "jobscripts")

setup(
    packages=[*find_packages(include=["exex", "exex.*"]), *(f"exex.data.{name}" for name in DATA)],
    package_dir={f"exex.data.{name}": name for name in DATA},
    package_data={"exex": ["py.typed"], **{f"exex.data.{name}": ["*"] for name in DATA}},
)
