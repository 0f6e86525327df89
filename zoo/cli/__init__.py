"""The command line: `main` selects the command, `commands` has one file per command.

No other package may import all the others.
"""
