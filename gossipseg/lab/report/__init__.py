"""What a comparison says to people: statistics, tables, pictures, pages.

It reads results.json and trains nothing.
"""
