"""Readers of compiled programs (HLO)."""
