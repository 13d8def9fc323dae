"""First code of a template that runs with a staged environment's own interpreter. A script: it imports nothing of exex before
it has seen to it that this comes from the node and not from the shared file system.

What goes wrong here goes to the rank as its `Failed` would, so that the job ends and says why.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys


def main() -> None:
    """Set up `sys.path`, then be the template."""
    gc.disable()  # the template enables it when all is imported
    told = json.loads(os.environ.pop("EXEX_TEMPLATE_START"))
    sock = socket.socket(fileno=told["fd"])
    try:
        sys.path += settle(told)
        from exex.launch.heap import keep_heap
        from exex.worker.template import template_main
    except BaseException as error:
        sock.send(failed(f"the staged environment {sys.prefix} cannot be used: {type(error).__name__}: {error}"))
        sys.exit(1)
    keep_heap()
    template_main(sock, dict(os.environ))


def settle(told: dict[str, object]) -> list[str]:
    """Make this interpreter one of exex, which knows modules of the node alone.

    Returns:
        The rest of `sys.path`, all that is shared: who looks there for a module that is missing opens each of these directories.

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
    sys.path[:] = near_path(told, [path for path in sys.path if path != here])
    return [path for path in far_path(told) if path not in sys.path]


def near_path(told: dict[str, object], own: list[str]) -> list[str]:
    """This exex, the staged environment, and what exex needs if that is not in there."""
    return list(dict.fromkeys(str(each) for each in [told["own"], *own, told["deps"]] if each))


def far_path(told: dict[str, object]) -> list[str]:
    """All that is shared."""
    hidden, shared = told["hidden"], told["shared"]
    assert isinstance(hidden, dict) and isinstance(shared, list)
    return list(dict.fromkeys(str(each) for each in [*hidden.get("PYTHONPATH", "").split(os.pathsep), *shared] if each))


def failed(text: str) -> bytes:
    """The message `Failed` in MessagePack, by hand: what encodes it otherwise may be what cannot be imported."""
    data = text.encode()[:60_000]
    return b"\x82\xa4type\xa6Failed\xa5error\xda" + len(data).to_bytes(2, "big") + data


if __name__ == "__main__":
    main()
