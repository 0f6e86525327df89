"""The command line. It is the only package that may import all others; `main` finds the command, `commands` has a file for
each."""
