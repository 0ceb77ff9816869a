"""The goals suites."""
