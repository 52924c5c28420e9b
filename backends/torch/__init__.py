"""torch as a backend: an independent second opinion, through torch's own ops."""

from opconform.backends.torch.backend import TorchBackend

__all__ = ["TorchBackend"]
