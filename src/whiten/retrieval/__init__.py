"""Search among vectors in memory or in mapped files: exact, ranked, of sets, and re-ranked.

(queries, d) and (n, d) float32 arrays enter; indices, similarities and ranks leave.
"""
