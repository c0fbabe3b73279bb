"""chiasm: WebDataset shards in, answers out. The three folders are links to the repository's own:
`chiasm.pipeline` (shards -> embeddings), `chiasm.index` (embeddings -> answers) and `chiasm.jobs`
(both, on a cluster and at a prompt).
"""
