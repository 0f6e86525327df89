"""Completion of the command line in shells: scripts that are made from the help texts of the commands."""
