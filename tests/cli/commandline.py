"Commands called in this process, and what a tiny run looks like."

import contextlib
import io
import shlex

from cfvae.cli import main
from cfvae.runs import callbacks

SETTINGS = {  # a model that trains in seconds
    "autoencoder.widths": "8,8",
    "vae.widths": "8",
    "vae.encoder_widths": "8",
    "vae.layers": "1",
    "vae.encoder_blocks": "1",
    "batch_size": "8",
    "warmup": "5",
    "ema_decay": "0.9",
    "checkpoint_every": "5",
    "log_every": "1",
}
SIZES = " ".join(f"--set {key}={value}" for key, value in SETTINGS.items())
TINY = f"train --preset shapes-demo --data shapes:n=60 {SIZES} --precision fp32 --device cpu"


def call(line):
    "Exit code, output and error output of a command."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(line))
    return code, out.getvalue(), err.getvalue()


def done(line):
    "The output of a command that has to succeed."
    code, out, err = call(line)
    assert code == 0, err
    return out


def refused(line, *needles):
    "Whatever the mistake is: code 2, and one or two lines on the error stream that hold the needles."
    code, out, err = call(line)
    assert code == 2, (code, out, err)
    message = err[err.index("error: ") :]
    assert len(message.splitlines()) <= 2
    assert "Traceback" not in err and "╭" not in err
    for needle in needles:
        assert needle in message, message
    return out


def at_step(monkeypatch, moment, action):
    "Call `action` after a step, named as in 'vae 3'."
    original = callbacks.JsonLog.on_step

    def on_step(self, state, metrics):
        original(self, state, metrics)
        if f"{self.path.parent.name} {state.step}" == moment:
            action()

    monkeypatch.setattr(callbacks.JsonLog, "on_step", on_step)
