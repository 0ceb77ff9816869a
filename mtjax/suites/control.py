"""The control suites."""
