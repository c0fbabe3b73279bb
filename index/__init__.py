"""Embeddings -> answers. `open_collection(path).search("a red boat")`; see index/retrieve.py."""

from chiasm.index.build import build_index
from chiasm.index.results import Answer, Query, Result
from chiasm.index.retrieve import Searcher, open_collection

__all__ = ["Answer", "Query", "Result", "Searcher", "build_index", "open_collection"]
