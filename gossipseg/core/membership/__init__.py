"""Who is there: SWIM with Lifeguard's local health. Records, their spread, and the failure detector.

What a record means is decided here, what it causes elsewhere (gossip, rounds, enforcement) is not.
"""
