"""Headless: the workflow starts inside the allocation and asks the nodes who they are.

In a Slurm job: srun -N 2 --ntasks-per-node 2 python -m exex.run examples/platform_info.py
Anywhere else: exex run -n 4 examples/platform_info.py
"""

from exex import python_app


@python_app
def platform():
    """Sleep for half a second, so that all slots get some, then return what the node says of itself."""
    import platform  # here, because the app has the name of the module
    import time

    time.sleep(0.5)
    return platform.uname()


calls = [platform() for _ in range(4)]
print(calls)
for call in calls:
    print("Got result:", call.result())
