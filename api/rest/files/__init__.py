"""Routes by which files come and go."""
