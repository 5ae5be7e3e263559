"""English requests with instructions that code can check: the requests, the oracle, and preference pairs."""
