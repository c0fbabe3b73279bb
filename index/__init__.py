"""Embeddings -> answers. `open_collection(path).search("a red boat")`; see index/retrieve.py."""

from chiasm.index.ask import AskSettings, CollectionAnswer, ask_collection
from chiasm.index.audit import AuditedRecall
from chiasm.index.build import BuildSummary, build_index
from chiasm.index.hit_files import HitCounts, search_file
from chiasm.index.hits import Explanation, Hit, Trace
from chiasm.index.plan import IndexSettings
from chiasm.index.queries import PictureSource, Query, RerankStage, Term, check_rate
from chiasm.index.query_files import read_queries
from chiasm.index.receipts import Recorder, Replay, replay
from chiasm.index.results import Answer, Result, row_id
from chiasm.index.retrieve import Searcher, open_collection

__all__ = [
    "Answer",
    "AskSettings",
    "AuditedRecall",
    "BuildSummary",
    "CollectionAnswer",
    "Explanation",
    "Hit",
    "HitCounts",
    "IndexSettings",
    "PictureSource",
    "Query",
    "Recorder",
    "Replay",
    "RerankStage",
    "Result",
    "Searcher",
    "Term",
    "Trace",
    "ask_collection",
    "build_index",
    "check_rate",
    "open_collection",
    "read_queries",
    "replay",
    "row_id",
    "search_file",
]
