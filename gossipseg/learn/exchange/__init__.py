"""Models of other sites: read, admitted, merged, judged, taken back, aggregated, written for the wire.

What must not stand here: the transport (wire), and who is asked (core).
"""
