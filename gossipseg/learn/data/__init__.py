"""From files to batches: lists of cases, splits, readers, label rules, patches, augmentation.

What must not stand here: networks, losses, optimizers.
"""
