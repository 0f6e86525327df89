"""Runs in an object store: a local working copy is trained, its commits are uploaded, and a reader fetches what it lacks."""
