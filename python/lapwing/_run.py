"""Speaks with the node: one JSON object a line, as docs/trainer-protocol.md says. Standard library only."""

import json
import os
import queue
import shutil
import sys
import threading
import traceback
from dataclasses import dataclass
from math import isfinite

from ._tensors import Parameters

PROTOCOL = 1

_tell = None


@dataclass(frozen=True)
class Job:
    """What a trainer is told of the job that begins."""

    seed: int
    #: Samples a step.
    batch: int
    momentum: float
    weight_decay: float
    #: The data's source as the job or the node names it, such as ``idx:/data/mnist``; yours to use or not.
    data: str
    #: This node's part of the data, from 1 to ``parts``.
    part: int
    parts: int

    def share(self, samples):
        """Every ``parts``-th of a sequence, another one for each part: an even share where nothing is sorted."""
        return samples[self.part - 1 :: self.parts]


class TrainerError(Exception):
    """The node said something that this version does not understand."""


def progress():
    """Tells the node that a long step goes on, so that it does not give the trainer up."""
    if _tell is not None:
        _tell({"type": "progress"})


def run(trainer, name=None):
    """Serves the node until it says stop. Call it last: it does not return before that.

    ``trainer`` has

    * ``parameters``: a PyTorch module, or a dictionary of names and tensors (PyTorch, NumPy or ``lapwing.Tensor``), which
      this changes in place. Names and shapes must be the same on all nodes, and so must the values once ``open`` returns;
    * ``train(steps, lr)``: takes so many steps and returns their mean loss and the number of samples;
    * ``evaluate()``: returns the accuracy on test data, from 0 to 1;

    and may have

    * ``open(job)``: a job begins, see ``Job``; seeds, data and first parameters belong here;
    * ``save()`` and ``restore(state)``: what the optimiser remembers, as bytes; ``b""`` is nothing;
    * ``samples``: how many samples this node learns from, where that is not alike; ``fedavg`` weighs by it;
    * ``parameters_from``: ``"node"`` to have the node draw the first parameters.
    """
    global _tell
    # What anybody prints belongs in the node's log; only messages may be on standard output.
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    sys.stdout = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace", buffering=1)

    def tell(message):
        # Refuses what is no JSON: a NaN.
        out.write(json.dumps(message, allow_nan=False) + "\n")
        out.flush()

    _tell = tell
    session = _Session(trainer)
    requests = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, session), daemon=True).start()
    tell(session.hello(name))
    while True:
        request = requests.get()
        if request.get("type") == "stop":
            return
        try:
            answer = session.answer(request)
        except Exception as error:  # The node hears of it, and may ask again.
            traceback.print_exc()
            answer = {"type": "error", "message": f"{type(error).__name__}: {error}"[:1000]}
        tell(answer)


def _listen(requests, session):
    """Reads requests. Where the node is gone, so is this process, also in the middle of a step."""
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
        except ValueError:
            break
        requests.put(request)
        if request.get("type") == "stop":
            return
    if session.folder is not None:
        shutil.rmtree(session.folder, ignore_errors=True)
    os._exit(0)


class _Session:
    """What is asked for, done with a trainer. Knows no pipe."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.parameters = Parameters(trainer.parameters)
        self.folder = self.model = self.state = None

    def hello(self, name=None):
        return {
            "type": "hello",
            "protocol": PROTOCOL,
            "name": name or type(self.trainer).__name__,
            "init": getattr(self.trainer, "parameters_from", "trainer"),
            "layout": self.parameters.layout(),
        }

    def answer(self, request):
        handle = getattr(self, "on_" + str(request.get("type")), None)
        if handle is None:
            raise TrainerError(f"there is no request {request.get('type')!r} in version {PROTOCOL} of the protocol")
        return handle(request)

    def on_open(self, request):
        if request["protocol"] != PROTOCOL:
            raise TrainerError(f"the node speaks version {request['protocol']}, and this package {PROTOCOL}")
        self.model, self.state = request["model"], request["state"]
        self.folder = os.path.dirname(self.model)
        fields = ("seed", "batch", "momentum", "weight_decay", "data", "part", "parts")
        opened = getattr(self.trainer, "open", None)
        if opened is not None:
            opened(Job(**{field: request[field] for field in fields}))
        layout = self.parameters.layout()
        # The trainer may have made its tensors anew.
        self.parameters = Parameters(self.trainer.parameters)
        if self.parameters.layout() != layout:
            raise TrainerError("open() has changed the names or shapes of the parameters")
        self.parameters.write(self.model)
        samples = getattr(self.trainer, "samples", None)
        return {"type": "opened"} if samples is None else {"type": "opened", "samples": int(samples)}

    def on_train(self, request):
        self.parameters.read(self.model)
        loss, samples = self.trainer.train(request["steps"], request["lr"])
        loss = float(loss)
        if not isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}: use a smaller learning rate")
        self.parameters.write(self.model)
        return {"type": "trained", "loss": loss, "samples": int(samples)}

    def on_evaluate(self, request):
        self.parameters.read(self.model)
        return {"type": "evaluated", "accuracy": float(self.trainer.evaluate())}

    def on_save(self, request):
        save = getattr(self.trainer, "save", None)
        state = b"" if save is None else bytes(save())
        with open(self.state, "wb") as file:
            file.write(state)
        return {"type": "saved", "bytes": len(state)}

    def on_restore(self, request):
        with open(self.state, "rb") as file:
            state = file.read(request["bytes"])
        restore = getattr(self.trainer, "restore", None)
        if restore is not None:
            restore(state)
        return {"type": "restored"}
