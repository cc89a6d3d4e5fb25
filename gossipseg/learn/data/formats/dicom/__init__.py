"""DICOM: images from one or many files, and labels as DICOM-SEG or RTSTRUCT, read and written.

What must not stand here: how a case is found, the task, torch.
"""
