"""From recipes to trials to results: planning, leases, trial folders, workers, and the run itself."""
