"""Commands of `zoo`, one file per command or pair of related commands.

Each parses its options and calls the package that does the work. Only these files and `zoo.cli.main` import from all packages,
and no other file imports them. JAX is imported when a command needs it, not before.
"""
