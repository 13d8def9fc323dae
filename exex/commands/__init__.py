"""Commands of the shell that are loaded when they are called: see `cli`."""
