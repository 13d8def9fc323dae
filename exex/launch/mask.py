"""`python mask.py VARIABLE HOST=NAMES;... PROGRAM ARGUMENTS...`: runs a program with the accelerators of its node.

For programs on several nodes that were not granted the same accelerators on each: an environment is the same on all nodes.
Nothing of exex is imported, so that it starts fast: it stands between a launcher and each of its ranks.
"""

import os
import socket
import sys

NOT_STARTED = 125


def main(words: "list[str]") -> None:
    """Become the program."""
    variable, masks, *program = words
    names = dict(entry.split("=", 1) for entry in masks.split(";"))
    host = socket.gethostname()
    found = names.get(host, names.get(host.split(".")[0]))
    if found is None:
        print(f"exex: {variable} cannot be set on {host}: accelerators were granted on {', '.join(names)}", file=sys.stderr)
        sys.exit(NOT_STARTED)
    os.environ[variable] = found
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
