"""Embeddings -> answers. `open_collection(path).search("a red boat")`; see index/retrieve.py."""

from chiasm.index.audit import AuditedRecall
from chiasm.index.build import BuildSummary, build_index
from chiasm.index.hit_files import HitCounts, search_file
from chiasm.index.plan import IndexSettings
from chiasm.index.queries import PictureSource, Query, RerankStage, Term, check_rate
from chiasm.index.query_files import read_queries
from chiasm.index.results import Answer, Hit, Result, row_id
from chiasm.index.retrieve import Searcher, open_collection

__all__ = [
    "Answer",
    "AuditedRecall",
    "BuildSummary",
    "Hit",
    "HitCounts",
    "IndexSettings",
    "PictureSource",
    "Query",
    "RerankStage",
    "Result",
    "Searcher",
    "Term",
    "build_index",
    "check_rate",
    "open_collection",
    "read_queries",
    "row_id",
    "search_file",
]
