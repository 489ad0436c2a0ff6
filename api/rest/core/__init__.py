"""Routes about a budget: its events and their followers, its records, who takes part."""
