"""Scores of predictions: Dice, surface Dice and HD95 by case, summaries, paired comparison, overlays.

What must not stand here: training, and which model is scored.
"""
