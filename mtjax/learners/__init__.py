"""Learners: experience in, one loss per task, one gradient per task, one update out."""
