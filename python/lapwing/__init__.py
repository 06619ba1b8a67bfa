"""Train a model of your own with Lapwing: ``lapwing.run(trainer)``.

The node starts your program, hands it parameters, has it train for some steps, and takes them back; rounds, exchanges,
averages and checkpoints are the node's. See docs/trainer-protocol.md for what is said, and README.md for what a trainer is.
"""

from ._run import Job, TrainerError, progress, run
from ._tensors import Tensor

__all__ = ["Job", "Tensor", "TrainerError", "progress", "run"]
