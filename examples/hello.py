"""The smallest workflow: one Python function, run as a task on a worker.

Run it: exex run -n 4 examples/hello.py
"""

from exex import python_app


@python_app
def hello():
    return "Hello World!"


print(hello().result())
