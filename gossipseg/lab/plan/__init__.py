"""What is compared: choices, variants, splits, and the plan of each run."""
