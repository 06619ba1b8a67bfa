"""Parameters of any kind as named tensors that can be written to and read from one flat vector of floats.

Knows PyTorch's modules and tensors and NumPy's arrays by what they can do, and imports neither.
"""

import sys
from array import array
from math import isfinite, prod

CHUNK_BYTES = 1 << 22


class Tensor:
    """Parameters without any library: ``data`` is an ``array('f')`` in row-major order."""

    def __init__(self, shape, values=None):
        self.shape = tuple(int(dimension) for dimension in shape)
        length = prod(self.shape)
        self.data = array("f", bytes(4 * length)) if values is None else array("f", values)
        if len(self.data) != length:
            raise ValueError(f"{len(self.data)} values do not fill a tensor of shape {self.shape}")


class _Plain:
    def __init__(self, tensor):
        self.tensor, self.shape = tensor, tensor.shape

    def write_to(self, file):
        values = self.tensor.data
        if not all(map(isfinite, values)):
            raise FloatingPointError("a parameter is not finite: use a smaller learning rate")
        if sys.byteorder == "big":
            values = array("f", values)
            values.byteswap()
        file.write(values.tobytes())

    def read_from(self, file):
        values = array("f", _exactly(file, 4 * len(self.tensor.data)))
        if sys.byteorder == "big":
            values.byteswap()
        # In place: the trainer may hold on to the array.
        self.tensor.data[:] = values


class _NumPy:
    def __init__(self, value):
        if str(value.dtype) not in ("float32", "float64", "float16"):
            raise TypeError(f"parameters are floats, not {value.dtype}")
        self.value, self.shape = value, tuple(value.shape)

    def write_to(self, file):
        flat = self.value.astype("<f4").reshape(-1)
        # A sum of finite squares may overflow, a product with zero does not.
        if not bool((flat * 0 == 0).all()):
            raise FloatingPointError("a parameter is not finite: use a smaller learning rate")
        file.write(flat.tobytes())

    def read_from(self, file):
        count = prod(self.shape)
        flat = sys.modules["numpy"].frombuffer(_exactly(file, 4 * count), dtype="<f4")
        self.value[...] = flat.reshape(self.shape)


class _Torch:
    def __init__(self, value):
        self.value, self.shape = value.detach(), tuple(value.shape)

    def write_to(self, file):
        torch = sys.modules["torch"]
        flat = self.value.to(device="cpu", dtype=torch.float32).contiguous().reshape(-1)
        if not bool(torch.isfinite(flat).all()):
            raise FloatingPointError("a parameter is not finite: use a smaller learning rate")
        file.write(flat.numpy().tobytes() if _has_numpy() else array("f", flat.tolist()).tobytes())

    def read_from(self, file):
        torch = sys.modules["torch"]
        data = bytearray(_exactly(file, 4 * prod(self.shape)))
        values = torch.frombuffer(data, dtype=torch.float32) if data else torch.empty(0)
        with torch.no_grad():
            self.value.copy_(values.reshape(self.shape))


def _has_numpy():
    try:
        import numpy  # noqa: F401
    except ImportError:
        return False
    return True


def _exactly(file, length):
    parts = []
    while length:
        part = file.read(min(length, CHUNK_BYTES))
        if not part:
            raise EOFError("the file with the parameters is too short")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _adapted(value):
    if isinstance(value, Tensor):
        return _Plain(value)
    if hasattr(value, "detach") and hasattr(value, "copy_"):
        return _Torch(value)
    if hasattr(value, "dtype") and hasattr(value, "astype"):
        return _NumPy(value)
    raise TypeError(f"a parameter is a tensor of PyTorch, an array of NumPy or a lapwing.Tensor, not {type(value)}")


class Parameters:
    """Named tensors in a fixed order: of a dictionary, or of a PyTorch module.

    Of a module, also the buffers that hold floats (such as a batch norm's statistics) are exchanged; those that hold
    integers (such as its counter) stay each node's own.
    """

    def __init__(self, source):
        if hasattr(source, "state_dict") and hasattr(source, "named_parameters"):
            source = {
                name: value for name, value in source.state_dict(keep_vars=True).items() if value.is_floating_point()
            }
        self.tensors = {str(name): _adapted(value) for name, value in dict(source).items()}

    def layout(self):
        return [[name, list(tensor.shape)] for name, tensor in self.tensors.items()]

    def write(self, path):
        with open(path, "r+b") as file:
            for tensor in self.tensors.values():
                tensor.write_to(file)
            file.truncate()

    def read(self, path):
        with open(path, "rb") as file:
            for tensor in self.tensors.values():
                tensor.read_from(file)
