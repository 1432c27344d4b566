"""Keeping a run: its folder, its training, its report. Plain Python, exported by no lesson."""
