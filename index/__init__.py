"""Embeddings -> answers. `open_collection(path).search("a red boat")`; see index/retrieve.py."""

from chiasm.index.results import Answer, Query, Result
from chiasm.index.retrieve import Searcher, open_collection

__all__ = ["Answer", "Query", "Result", "Searcher", "open_collection"]
