"""The metaworld suites."""
