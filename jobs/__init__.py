"""Both on a cluster and in a person's hands. See docs/architecture.md."""
