"""The report of a comparison: statistics, tables, pictures, pages.

This package reads results.json and trains nothing.
"""
