"""One-shot segmentation: episodes, pseudo labels, and scores of pairs of support and query.

What must not stand here: the prototypes themselves (algos).
"""
