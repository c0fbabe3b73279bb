"""Commands, on a cluster and on one machine. See docs/architecture.md."""
