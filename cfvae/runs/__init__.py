"""Keeping a run: its folder, its training, its report. Plain Python, no lesson needs it."""
