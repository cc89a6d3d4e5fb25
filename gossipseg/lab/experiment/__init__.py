"""A comparison as a whole: checked, run in worker processes, stored in results.json."""
