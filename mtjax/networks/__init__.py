"""Networks: components, and the arrangements that determine which of them the tasks share."""
