"""Keeping a run: its folder, its training, its report. Plain Python, not from a lesson."""
