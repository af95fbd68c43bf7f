"""Scoring what a model writes: which texts, their outputs, numbers that can be published, and a page to read."""
