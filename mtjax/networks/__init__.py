"""Networks: components, and the arrangements that say which of them the tasks share."""
