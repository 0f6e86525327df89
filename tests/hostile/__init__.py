"""Hostile folders, and every command of the zoo on each: what SECURITY.md promises about files of others."""
