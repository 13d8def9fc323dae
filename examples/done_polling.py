"""Calling an app returns at once: a future, which can be asked whether the task is done, or waited for.

Run it: exex run -n 4 examples/done_polling.py
"""

import time

from exex import python_app


@python_app
def hello():
    time.sleep(1)
    return "Hello World!"


app_future = hello()

# The task has only just been submitted.
print(f"Done: {app_future.done()}")

# result() blocks until the task has ended.
print(f"Result: {app_future.result()}")
print(f"Done: {app_future.done()}")
