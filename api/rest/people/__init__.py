"""Routes about a user, apart from any budget: the profile and its photo."""
