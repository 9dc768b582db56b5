"""Recordings of training runs, and what they say of one another; no framework is imported."""
