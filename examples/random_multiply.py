"""A Python app feeds a bash app: a future given as an argument is a dependency, and arrives as its value.

Run it: exex run -n 4 examples/random_multiply.py
"""

import random

from exex import bash_app, python_app


@python_app
def random_multiply(x):
    return x * random.random()


@bash_app
def echo(word, stderr=("std.err", "w"), stdout=("std.out", "w")):
    return f'echo "{word}"'


product = random_multiply(10)
echoed = echo(product)  # starts when the product is known
echoed.result()

print(f"random_multiply(10) = {product.result()}")
with open("std.out") as f:
    print(f"std.out: {f.read()}", end="")
