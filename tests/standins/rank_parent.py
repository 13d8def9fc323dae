"""What Hydra starts for a stand-in: the parent of one rank. It moves to the rank's host, starts the rank with the variables of
the launcher that is played, reports its process and its end, and itself ends with 0, so that only the stand-in judges.

usage: rank_parent.py PLAN PROGRAM ARGUMENTS...
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_HYDRA_ALONE = ("MPI_LOCALNRANKS", "MPI_LOCALRANKID", "HYDI_CONTROL_FD", "PMI_HOSTNAME", "GFORTRAN_UNBUFFERED_PRECONNECTED")


def move_to(libc: ctypes.CDLL, host: bytes, hosts: bytes) -> None:
    """As root: be called like that host, and find the others by name, all of which are this machine."""
    if libc.unshare(_CLONE_NEWUTS | _CLONE_NEWNS) == 0:
        libc.sethostname(host, len(host))
        libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        libc.mount(hosts, b"/etc/hosts", None, _MS_BIND, None)


def main() -> int:
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    rank = int(os.environ["PMI_RANK"])
    mine = plan["ranks"][rank]
    libc = ctypes.CDLL(None)
    move_to(libc, mine["host"].encode(), plan["hosts"].encode())
    if not plan["is_hydra"]:
        for name in _HYDRA_ALONE:
            os.environ.pop(name, None)
    for name in plan["remove"]:
        os.environ.pop(name, None)
    os.environ.update(mine["env"])
    os.environ["STANDIN_HOST"] = mine["host"]
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # Hydra's signals are not for a rank of another launcher
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        try:
            os.execvp(sys.argv[2], sys.argv[2:])
        except OSError as error:
            sys.stderr.write(f"{sys.argv[2]}: {error.strerror}\n")
            os._exit(127)
    os.close(int(os.environ["PMI_FD"]))  # the rank's own
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as report:
        report.connect("\0" + plan["reports_to"])
        report.send(json.dumps({"rank": rank, "pid": child, "parent": parent}).encode())
        _, status = os.waitpid(child, 0)
        report.send(json.dumps({"rank": rank, "code": os.waitstatus_to_exitcode(status)}).encode())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BrokenPipeError, ConnectionError):
        sys.exit(0)  # the stand-in was killed
