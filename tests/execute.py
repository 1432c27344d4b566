"Run notebooks in kernels of their own and keep their outputs: python tests/execute.py NOTEBOOK..."

import sys
import time
from pathlib import Path
from queue import Empty

import nbformat
from nbclient import NotebookClient

TURN = 1.0  # seconds


class Client(NotebookClient):
    """A notebook client that does not miss the kernel's answer.

    Where a cell makes widgets, nbclient sends messages of its own while it waits, and one of them may use up
    the wake-up that announced the answer (nbclient issue 312): it then waits for ever, the kernel idle.
    Waiting in short turns looks again."""

    async def async_start_new_kernel_client(self):
        client = await super().async_start_new_kernel_client()
        wait = client.shell_channel.get_msg

        async def in_turns(timeout: float | None = None):
            end = time.monotonic() + (float("inf") if timeout is None else timeout)
            while True:
                left = end - time.monotonic()
                try:
                    return await wait(timeout=max(0.0, min(TURN, left)))
                except Empty:
                    if left <= TURN:
                        raise

        client.shell_channel.get_msg = in_turns
        return client


def execute(
    notebook: nbformat.NotebookNode,  # changed in place: it gets the outputs
    folder: Path,  # where its kernel works
    seconds: int = 600,  # for one cell
) -> None:
    "Run every cell. Raises nbclient's `CellExecutionError`, with the trace, or `CellTimeoutError`."
    Client(
        notebook,
        timeout=seconds,
        coalesce_streams=True,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    notebook.metadata.pop("widgets", None)  # the widgets' state, much larger than the picture beside them


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path, began = Path(name), time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        execute(notebook, path.parent)
        nbformat.write(notebook, path)
        print(f"{path}: {time.monotonic() - began:.0f} s", flush=True)
