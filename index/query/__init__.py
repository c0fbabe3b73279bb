"""A query's way: opened index, encoded query, search, rerank, diversify."""

from chiasm.index.query.auditing import Audits, Recalls, check_share
from chiasm.index.query.calibrate import Calibration
from chiasm.index.query.calibrated import calibrate_index, p_absent, require_words
from chiasm.index.query.diversify import diversify
from chiasm.index.query.encode import (
    encode_each,
    encode_queries,
    pixels_of,
    query_refused,
    text_of,
)
from chiasm.index.query.filter_rows import Filter
from chiasm.index.query.filtered import explain_search, search_filtered
from chiasm.index.query.filters import compile_filter, filter_for
from chiasm.index.query.keyword import add_keywords, open_keywords, search_keywords
from chiasm.index.query.open_index import OpenIndex
from chiasm.index.query.opening import live_generation, open_live
from chiasm.index.query.query_picture import encoded_picture
from chiasm.index.query.recent_queries import RecentQueries, Search
from chiasm.index.query.rerank import check_stages, rerank, reranker_fingerprints
from chiasm.index.query.scan import Allowed, ColumnIndex, as_float32
from chiasm.index.query.search import search
from chiasm.index.query.truth import exact_top, recall_of, rows_of_column, without_own

__all__ = [
    "Allowed",
    "Audits",
    "Calibration",
    "ColumnIndex",
    "Filter",
    "OpenIndex",
    "Recalls",
    "RecentQueries",
    "Search",
    "add_keywords",
    "as_float32",
    "calibrate_index",
    "check_share",
    "check_stages",
    "compile_filter",
    "diversify",
    "encode_each",
    "encode_queries",
    "encoded_picture",
    "exact_top",
    "explain_search",
    "filter_for",
    "live_generation",
    "open_keywords",
    "open_live",
    "p_absent",
    "pixels_of",
    "query_refused",
    "recall_of",
    "require_words",
    "rerank",
    "reranker_fingerprints",
    "rows_of_column",
    "search",
    "search_filtered",
    "search_keywords",
    "text_of",
    "without_own",
]
