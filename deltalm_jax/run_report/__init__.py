"""A run, or several, as one page: curves of what it left in its folder, and its configuration."""
