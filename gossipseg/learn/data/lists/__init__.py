"""What a site's lists and folders say: which files are a case, and which split it belongs to.

What belongs here: one module for each form (Decathlon and MONAI lists, nnU-Net folders, tables, plain
folders), and how their text is read. What must not: torch, numpy, opening an image, drawing splits.
"""
