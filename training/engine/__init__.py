"""The training loop: network, optimiser, schedule, checkpoints, resuming, the command."""

from .loading import load_trained
from .normalization import Normalization, normalization_of, normalized

__all__ = ["Normalization", "load_trained", "normalization_of", "normalized"]
