"""Objectives of learning from feedback: preferences, labelled answers, and rewards of sampled responses; one file each."""
