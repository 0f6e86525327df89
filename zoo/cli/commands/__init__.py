"""The commands of `zoo`, a file each or two that belong together: they read options and hand over to the room that does the work.

Together with `zoo.cli.main` they are the one place where the rooms meet; no other file imports them. jax is imported only once a
command needs it.
"""
