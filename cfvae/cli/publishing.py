"""`push`: a run's model for others."""

from pathlib import Path

from ..runs.folder import load_model
from ..runs.hub import publish, run_card


def print_card(
    run: Path,  # a run folder
    repo_id: str,  # owner/name
) -> None:
    "Print the model card that would be published."
    print(run_card(run, repo_id))


def push(
    run: Path,  # a run folder
    repo_id: str,  # owner/name
    private: bool,  # visible to its owner alone
) -> None:
    "Publish a run's model with its card, and say where."
    card = run_card(run, repo_id)
    address = publish(load_model(run), repo_id, card, private)
    print(f"published: {address}")
