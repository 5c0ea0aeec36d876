"""The training loop: network, optimiser, schedule, checkpoints, resuming, the command."""

from attnops.models.normalization import Normalization, normalization_of, normalized

from .loading import load_trained

__all__ = ["Normalization", "load_trained", "normalization_of", "normalized"]
