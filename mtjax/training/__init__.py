"""Training: rollouts, the training loop, evaluation, checkpoints, metrics. Arrays here have a leading seed axis S."""
