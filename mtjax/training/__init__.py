"""Training: rollout, loop, evaluation, checkpoints, metrics. Everything has a leading seed axis S here."""
