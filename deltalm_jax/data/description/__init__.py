"""Prepared data, looked at: numbers (`numbers.describe`), and the same as text for a terminal and as an HTML page."""
