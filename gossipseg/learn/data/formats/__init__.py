"""One reader for each kind of file that images and labels come in.

What belongs here: from a file to an array with its place in the patient, and back into a file; errors that
name the file. What must not: torch and MONAI, the task, training, who is in which split.
"""
