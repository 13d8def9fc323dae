"""First code of what runs with a staged environment's own interpreter: a template, or a whole rank with its guard. A script: it imports
nothing of exex before it has seen to it that this comes from the node and not from the shared file system.

What goes wrong in a template goes to the rank as its `Failed` would, so that the job ends and says why. Whether ranks can start so has been
tried before (`staged_ranks.prepare`).
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys


AT = "EXEX_STAGED_AT"
"""The variable by which a rank knows that its node is staged already: the directory."""

TOLD = "staged.json"
"""Its file there of what a rank must know."""

CHECK = "--check"
"""The word, instead of options, with which this imports what a rank needs, prints the name of the MPI library, and ends."""


def main() -> None:
    """Set up `sys.path`, then be the template, or the rank."""
    if AT in os.environ:
        _be_rank()
    gc.disable()  # the template enables it when all is imported
    told = json.loads(os.environ.pop("EXEX_TEMPLATE_START"))
    sock = socket.socket(fileno=told["fd"])
    try:
        _settle(told)
        from exex.launch.heap import keep_heap
        from exex.worker.template import template_main
    except BaseException as error:
        sock.send(failed(f"the staged environment {sys.prefix} cannot be used: {type(error).__name__}: {error}"))
        sys.exit(1)
    keep_heap()
    template_main(sock, dict(os.environ))


def _be_rank() -> None:
    """Be a rank, or try whether this could be one. Does not return."""
    with open(os.path.join(os.environ[AT], TOLD), encoding="utf-8") as file:
        _settle(json.load(file))
    if sys.argv[1:] == [CHECK]:
        import exex.rank  # noqa: F401
        from exex.transport import mpi

        print(mpi.library())
        sys.exit(0)
    from exex import run

    sys.exit(run.main())


def _settle(told: dict[str, object]) -> None:
    """Make this interpreter one of exex.

    Raises:
        RuntimeError: it is of another version than that which the job runs with.
    """
    wanted, hidden = told["python"], told["hidden"]
    assert isinstance(wanted, list) and isinstance(hidden, dict)
    if list(sys.version_info[:2]) != wanted:
        has = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise RuntimeError(f"it has Python {has}, and the job runs with {wanted[0]}.{wanted[1]}; both must be the same")
    os.environ.update(hidden)
    here = os.path.dirname(os.path.abspath(__file__))  # where Python has put it, and nobody should import from
    sys.path[:] = search_path(told, [path for path in sys.path if path != here])


def search_path(told: dict[str, object], own: list[str]) -> list[str]:
    """This exex, the staged environment, what exex needs if that is not in there, then all that is shared."""
    hidden, shared = told["hidden"], told["shared"]
    assert isinstance(hidden, dict) and isinstance(shared, list)
    path = [told["own"], *own, told["deps"], *hidden.get("PYTHONPATH", "").split(os.pathsep), *shared]
    return list(dict.fromkeys(str(each) for each in path if each))


def failed(text: str) -> bytes:
    """The message `Failed` in MessagePack, by hand: what encodes it otherwise may be what cannot be imported."""
    data = text.encode()[:60_000]
    return b"\x82\xa4type\xa6Failed\xa5error\xda" + len(data).to_bytes(2, "big") + data


if __name__ == "__main__":
    main()
