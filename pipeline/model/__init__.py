"""The project's own joint model: two towers now, with tokens left open for what is built on them.

Letters: B batch, T text tokens, N image patches, D width, H heads, E width of the shared space.
"""
