"""The gridworld suites."""
