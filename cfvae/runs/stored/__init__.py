"""The experiments of lessons 08 to 11 that take too long for a lesson: `python -m cfvae.runs.stored OUT`."""
