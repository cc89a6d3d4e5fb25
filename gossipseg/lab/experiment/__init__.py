"""A comparison as a whole: checked, run in worker processes, kept in results.json."""
