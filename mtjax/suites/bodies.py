"""The bodies suites."""
