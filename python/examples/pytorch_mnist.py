"""A PyTorch model on MNIST: lapwing node --trainer "python3 pytorch_mnist.py MNIST_FOLDER" ..."""
import gzip, io, sys
import lapwing, torch
from torch import nn

def idx(name, skip):
    with gzip.open(f"{sys.argv[1]}/{name}-ubyte.gz") as file:
        return torch.frombuffer(bytearray(file.read()[skip:]), dtype=torch.uint8)
class Mnist:
    def __init__(self):
        self.parameters = nn.Sequential(nn.Unflatten(1, (1, 28)), nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
                                        nn.Flatten(), nn.Linear(32 * 12 * 12, 128), nn.ReLU(), nn.Linear(128, 10))
    def open(self, job):
        self.batch, self.data = job.batch, [job.share(t) for t in self.load("train")]
        self.test = [t[:2000] for t in self.load("t10k")]  # the same on all nodes
        self.sgd = torch.optim.SGD(self.parameters.parameters(), lr=0.1, momentum=job.momentum)
        torch.manual_seed(job.seed)  # the same first parameters on all nodes
        [layer.reset_parameters() for layer in self.parameters if hasattr(layer, "reset_parameters")]
    def load(self, part):
        return idx(f"{part}-images-idx3", 16).view(-1, 28, 28) / 255, idx(f"{part}-labels-idx1", 8).long()
    def train(self, steps, lr):
        self.sgd.param_groups[0]["lr"], total = lr, 0.0
        for _ in range(steps):
            picked = torch.randint(len(self.data[1]), (self.batch,))
            loss = nn.functional.cross_entropy(self.parameters(self.data[0][picked]), self.data[1][picked])
            self.sgd.zero_grad(); loss.backward(); self.sgd.step(); total += loss.item()
        return total / steps, steps * self.batch
    def evaluate(self):
        with torch.no_grad(): return (self.parameters(self.test[0]).argmax(1) == self.test[1]).float().mean()
lapwing.run(Mnist())
