"""pit: learn to improve text from preference data (PIT, arXiv 2310.00898)."""

__version__ = "0.1.0"
