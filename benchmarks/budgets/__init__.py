"""Budgets of compiled training steps: what a change may not let grow without a reason."""
