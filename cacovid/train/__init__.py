"""Training of policies: rollouts, rewards, objectives and the trainer."""
