"""A command line as a task: the app returns the line, bash runs it on a worker, a file keeps what it prints.

Run it: exex run -n 4 examples/bash_hello.py
"""

from exex import bash_app


@bash_app
def echo_hello(stdout=("echo-hello.stdout", "w")):  # a path without a mode is appended to
    return 'echo "Hello World!"'


future = echo_hello()
future.result()  # the exit status; anything but 0 is raised as an error

with open("echo-hello.stdout") as f:
    print(f.read(), end="")
