"""A workflow whose tasks do to their process what user code does. Run by test_task_processes.py; prints JSON.

Each act runs in one of two slots while a task that must not notice waits in the other; right after it, a look at the
process in which the next task of that slot runs.
"""

import json
import os
import sys
import time

from exex import python_app

ACTS = {}


def act(function):
    ACTS[function.__name__] = python_app(function)
    return function


@act
def segfault():
    import ctypes

    ctypes.string_at(0)


@act
def killed_for_memory():
    import os
    import signal

    print("about to need too much", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does


@act
def leaves_at_once():
    import os

    os._exit(3)


@act
def sys_exit():
    import sys

    sys.exit(4)


@act
def recursion():
    def deeper():
        return deeper()

    deeper()


@act
def recursion_on_the_c_stack():
    import sys

    sys.setrecursionlimit(10**8)

    class Deep:
        def __repr__(self):
            return repr(Deep())

    repr(Deep())


@act
def closes_descriptors():
    import os

    os.closerange(0, 101)
    return "closed"


@act
def closes_all_descriptors():
    import os

    os.closerange(0, 1 << 16)
    return "never arrives"


@act
def changes_directory():
    import os
    import tempfile

    path = tempfile.mkdtemp()
    os.chdir(path)
    os.rmdir(path)


@act
def changes_handlers():
    import signal

    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))


@act
def sets_an_alarm():
    import signal

    signal.setitimer(signal.ITIMER_REAL, 0.2)


@act
def changes_umask():
    import os

    os.umask(0o777)


@act
def changes_environment():
    import os

    os.environ["LEFT_BEHIND"] = "yes"
    del os.environ["PATH"]


@act
def replaces_streams():
    import io
    import os
    import sys

    sys.stdout = sys.stderr = io.StringIO()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


@act
def leaves_threads():
    import threading
    import time

    for _ in range(20):
        threading.Thread(target=time.sleep, args=(1000,)).start()


@act
def leaves_children():
    import subprocess

    return subprocess.Popen(["sleep", "1000"]).pid


@act
def daemonises():
    import os
    import time

    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(write, str(os.getpid()).encode())
            os.closerange(0, 1 << 16)
            time.sleep(1000)
        os._exit(0)
    os.wait()
    return int(os.read(read, 100))


@act
def kills_its_parent():
    import os
    import signal
    import time

    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1000)


@act
def terminates_its_parent():
    import os
    import signal

    os.kill(os.getppid(), signal.SIGTERM)
    os.kill(os.getppid(), signal.SIGINT)
    return "alive"


@act
def kills_its_group():
    import os
    import signal

    os.killpg(os.getpgrp(), signal.SIGKILL)


@act
def kills_its_parents_group():
    import os
    import signal
    import time

    os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)
    time.sleep(1000)


@python_app
def bystander(path):
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.005)
    return "undisturbed"


@python_app
def look(seconds=0.0):
    import os
    import signal
    import sys
    import time

    time.sleep(seconds)
    umask = os.umask(0)
    os.umask(umask)
    print("still printing")
    return {
        "cwd": os.getcwd(),
        "umask": umask,
        "environment": sorted(os.environ),
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "handlers": [str(signal.getsignal(number)).split(" at ")[0] for number in sorted(signal.Signals)],
        "streams": [os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in (0, 1, 2)] + [type(sys.stdout).__name__],
    }


def main():
    told = {"before": look().result()}
    for name, app in ACTS.items():
        calm = bystander(f"{name}.over")
        while not calm.running():
            time.sleep(0.005)
        future = app()
        error = future.exception()
        told[name] = {
            "value": None if error else future.result(),
            "error": type(error).__name__,
            "text": str(error),
            "next": look(0.3 if name == "sets_an_alarm" else 0.0).result(),  # one that is left would go off
        }
        with open(f"{name}.over", "w"):
            pass
        told[name]["bystander"] = calm.result()
    with open("told.json", "w") as file:
        json.dump(told, file)
    print("all acts are over", os.getpid())


main()
