"""`python -m exex`: the same as the command `exex`."""

from exex.cli import main

main(prog_name="exex")
