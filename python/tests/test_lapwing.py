"""The package without a node: tensors, what is answered, and a program over its pipes."""

import json
import os
import struct
import subprocess
import sys
import tempfile
import textwrap
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.dirname(HERE)
sys.path.insert(0, PACKAGE)

import lapwing  # noqa: E402
from lapwing._run import _Session  # noqa: E402
from lapwing._tensors import Parameters  # noqa: E402


class Trainer:
    def __init__(self):
        self.weight = lapwing.Tensor((2, 3), [1, 2, 3, 4, 5, 6])
        self.bias = lapwing.Tensor((2,))
        self.parameters = {"weight": self.weight, "bias": self.bias}

    def open(self, job):
        self.job = job

    def train(self, steps, lr):
        for place in range(6):
            self.weight.data[place] += steps * lr
        return 0.25, 32 * steps

    def evaluate(self):
        return 0.5


class Tensors(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.model = os.path.join(self.folder.name, "model")
        open(self.model, "wb").close()

    def test_tensors_lie_one_after_the_other_as_little_endian_floats(self):
        parameters = Parameters({"a": lapwing.Tensor((2,), [1, 2]), "b": lapwing.Tensor((), [-0.5])})
        parameters.write(self.model)
        with open(self.model, "rb") as file:
            self.assertEqual(file.read(), struct.pack("<3f", 1, 2, -0.5))
        self.assertEqual(parameters.layout(), [["a", [2]], ["b", []]])

    def test_tensors_are_read_in_place(self):
        tensor = lapwing.Tensor((2,))
        data = tensor.data
        with open(self.model, "wb") as file:
            file.write(struct.pack("<2f", 3, 4))
        Parameters({"a": tensor}).read(self.model)
        self.assertEqual(list(data), [3, 4])

    def test_a_file_that_is_too_short_is_told(self):
        with self.assertRaises(EOFError):
            Parameters({"a": lapwing.Tensor((2,))}).read(self.model)

    def test_values_that_are_not_finite_are_not_written(self):
        for value in (float("nan"), float("inf")):
            with self.assertRaises(FloatingPointError):
                Parameters({"a": lapwing.Tensor((1,), [value])}).write(self.model)

    def test_what_is_no_tensor_is_refused(self):
        with self.assertRaises(TypeError):
            Parameters({"a": [1.0, 2.0]})
        with self.assertRaises(ValueError):
            lapwing.Tensor((2, 2), [1.0])

    def test_arrays_of_numpy_are_written_and_read_in_place(self):
        try:
            import numpy
        except ImportError:
            self.skipTest("NumPy is not installed")
        weight, bias = numpy.arange(6, dtype="f4").reshape(2, 3), numpy.ones(2)
        parameters = Parameters({"weight": weight, "bias": bias})
        parameters.write(self.model)
        with open(self.model, "rb") as file:
            self.assertEqual(file.read(), struct.pack("<8f", 0, 1, 2, 3, 4, 5, 1, 1))
        weight[...], bias[...] = 0, 0
        parameters.read(self.model)
        self.assertEqual((weight.tolist(), bias.tolist()), ([[0, 1, 2], [3, 4, 5]], [1, 1]))
        bias[0] = numpy.nan
        with self.assertRaises(FloatingPointError):
            parameters.write(self.model)
        with self.assertRaises(TypeError):
            Parameters({"count": numpy.arange(3)})

    def test_modules_of_pytorch_are_exchanged_with_their_float_buffers(self):
        try:
            import torch
        except ImportError:
            self.skipTest("PyTorch is not installed")
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        parameters = Parameters(module)
        names = [name for name, _ in parameters.layout()]
        self.assertEqual(
            names, ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
        )
        before = [tensor.detach().clone() for tensor in module.state_dict().values()]
        parameters.write(self.model)
        self.assertEqual(os.path.getsize(self.model), 4 * (6 + 2 + 2 + 2 + 2 + 2))
        with torch.no_grad():
            for tensor in module.state_dict().values():
                tensor.zero_()
        parameters.read(self.model)
        for was, tensor in zip(before, module.state_dict().values()):
            self.assertTrue(torch.equal(was, tensor))


class Sessions(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.model, self.state = (os.path.join(self.folder.name, name) for name in ("model", "state"))
        for file in (self.model, self.state):
            open(file, "wb").close()
        self.open = {"type": "open", "protocol": 1, "model": self.model, "state": self.state, "seed": 1, "batch": 32}
        self.open.update({"momentum": 0.9, "weight_decay": 0.0, "data": "digits", "part": 2, "parts": 3})

    def test_a_job_is_opened_trained_and_evaluated(self):
        trainer = Trainer()
        session = _Session(trainer)
        self.assertEqual(session.hello()["layout"], [["weight", [2, 3]], ["bias", [2]]])
        self.assertEqual(session.answer(self.open), {"type": "opened"})
        self.assertEqual(trainer.job.share(list(range(7))), [1, 4])
        with open(self.model, "wb") as file:
            file.write(struct.pack("<8f", *range(8)))
        trained = session.answer({"type": "train", "round": 1, "step": 0, "steps": 2, "lr": 0.5})
        self.assertEqual(trained, {"type": "trained", "loss": 0.25, "samples": 64})
        with open(self.model, "rb") as file:
            self.assertEqual(file.read(), struct.pack("<8f", 1, 2, 3, 4, 5, 6, 6, 7))
        self.assertEqual(session.answer({"type": "evaluate"}), {"type": "evaluated", "accuracy": 0.5})
        self.assertEqual(session.answer({"type": "save"}), {"type": "saved", "bytes": 0})

    def test_an_optimiser_is_saved_and_restored_as_bytes(self):
        trainer = Trainer()
        trainer.save = lambda: b"momentum"
        trainer.restore = lambda state: setattr(trainer, "restored", state)
        session = _Session(trainer)
        session.answer(self.open)
        self.assertEqual(session.answer({"type": "save"}), {"type": "saved", "bytes": 8})
        session.answer({"type": "restore", "bytes": 8})
        self.assertEqual(trainer.restored, b"momentum")
        session.answer({"type": "restore", "bytes": 0})
        self.assertEqual(trainer.restored, b"")

    def test_a_loss_that_is_not_finite_leaves_the_parameters_alone(self):
        trainer = Trainer()
        session = _Session(trainer)
        session.answer(self.open)
        with open(self.model, "rb") as file:
            before = file.read()
        trainer.train = lambda steps, lr: (float("nan"), 1)
        with self.assertRaises(FloatingPointError):
            session.answer({"type": "train", "round": 1, "step": 0, "steps": 1, "lr": 0.1})
        with open(self.model, "rb") as file:
            self.assertEqual(file.read(), before)

    def test_another_version_or_request_is_refused(self):
        session = _Session(Trainer())
        with self.assertRaises(lapwing.TrainerError):
            session.answer({**self.open, "protocol": 2})
        with self.assertRaises(lapwing.TrainerError):
            session.answer({"type": "dance"})


PROGRAM = textwrap.dedent(
    """
    import sys, lapwing
    class Mine:
        parameters = {"w": lapwing.Tensor((2,), [1, 2])}
        def train(self, steps, lr):
            print("an epoch", end="")
            lapwing.progress()
            if steps == 13: raise RuntimeError("no luck")
            while steps == 99: pass
            return 1.5, steps
        def evaluate(self): return 1
    lapwing.run(Mine(), name="mine")
    """
)


class Programs(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.shared = os.path.join(self.folder.name, "shared")
        os.mkdir(self.shared)
        for name in ("model", "state"):
            open(os.path.join(self.shared, name), "wb").close()
        self.program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": PACKAGE},
        )
        self.addCleanup(self.end)

    def end(self):
        self.program.kill()
        self.program.communicate()
        self.folder.cleanup()

    def tell(self, **request):
        self.program.stdin.write(json.dumps(request).encode() + b"\n")
        self.program.stdin.flush()

    def hear(self):
        return json.loads(self.program.stdout.readline())

    def opened(self):
        self.assertEqual(self.hear()["name"], "mine")
        folder = {name: os.path.join(self.shared, name) for name in ("model", "state")}
        self.tell(type="open", protocol=1, seed=1, batch=1, momentum=0, weight_decay=0, data="", part=1, parts=1, **folder)
        self.assertEqual(self.hear(), {"type": "opened"})

    def test_only_messages_are_on_standard_output_and_failures_are_told(self):
        self.opened()
        self.tell(type="train", round=1, step=0, steps=3, lr=0.1)
        self.assertEqual([self.hear(), self.hear()], [{"type": "progress"}, {"type": "trained", "loss": 1.5, "samples": 3}])
        self.tell(type="train", round=1, step=0, steps=13, lr=0.1)
        self.assertEqual([self.hear(), self.hear()], [{"type": "progress"}, {"type": "error", "message": "RuntimeError: no luck"}])
        self.tell(type="evaluate")
        self.assertEqual(self.hear(), {"type": "evaluated", "accuracy": 1.0})
        self.tell(type="stop")
        self.assertEqual(self.program.wait(60), 0)
        self.assertIn(b"an epoch", self.program.stderr.read())

    def test_a_program_ends_with_its_node_also_in_the_middle_of_a_step(self):
        self.opened()
        self.tell(type="train", round=1, step=0, steps=99, lr=0.1)
        self.assertEqual(self.hear(), {"type": "progress"})
        self.program.stdin.close()
        self.program.stdin = None
        self.assertEqual(self.program.wait(60), 0)
        self.assertFalse(os.path.exists(self.shared))


if __name__ == "__main__":
    unittest.main()
