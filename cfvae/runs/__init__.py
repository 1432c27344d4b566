"""Keeping a run: its folder, its training, its report. Plain Python, not part of a lesson."""
