"""Training, evaluation and prediction: data sets, augmentation, metrics, recipes, commands."""

from .engine.loading import load_trained

__all__ = ["load_trained"]
