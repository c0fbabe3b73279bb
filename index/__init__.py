"""Embeddings -> answers. `open_collection(path).search("a red boat")`; see index/retrieve.py."""

from chiasm.index.build import BuildSummary, build_index
from chiasm.index.plan import IndexSettings
from chiasm.index.queries import PictureSource, Query, RerankStage
from chiasm.index.results import Answer, Hit, Result, check_rate, row_id
from chiasm.index.retrieve import Searcher, open_collection

__all__ = [
    "Answer",
    "BuildSummary",
    "Hit",
    "IndexSettings",
    "PictureSource",
    "Query",
    "RerankStage",
    "Result",
    "Searcher",
    "build_index",
    "check_rate",
    "open_collection",
    "row_id",
]
