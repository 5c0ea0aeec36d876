"""Training, evaluation and prediction: data sets, augmentation, metrics, recipes, commands."""
