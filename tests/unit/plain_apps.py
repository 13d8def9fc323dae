"""Apps for tests that need any."""

from __future__ import annotations

from exex import python_app


@python_app
def echo(value, *more):
    return value


@python_app
def held(value):
    return value


@python_app
def fail(text):
    raise ValueError(text)
