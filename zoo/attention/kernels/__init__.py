"""Attention implementations, one file each: functions of the arrays on one device."""
