"""A query's way: opened index, encoded query, search, rerank, diversify."""

from chiasm.index.query.auditing import Audits, Recalls, check_share
from chiasm.index.query.calibrate import Calibration
from chiasm.index.query.calibrated import calibrate_index, p_absent, require_words
from chiasm.index.query.calibration_sample import TooFewCaptions
from chiasm.index.query.diversify import diversify
from chiasm.index.query.encode import (
    decoded_picture,
    encode_each,
    encode_queries,
    encode_with_tokens,
    explain_picture,
    pixels_of,
    query_refused,
    text_of,
)
from chiasm.index.query.filter_rows import Filter
from chiasm.index.query.filtered import explain_search, search_filtered, search_lists
from chiasm.index.query.filters import compile_filter, filter_for
from chiasm.index.query.keyword import add_keywords, open_keywords, search_keywords
from chiasm.index.query.late_interaction import (
    NotCalibrated,
    QueryTokens,
    require_single_vectors,
    search_tokens,
    searches_tokens,
)
from chiasm.index.query.open_index import OpenIndex
from chiasm.index.query.opening import live_generation, open_live
from chiasm.index.query.query_picture import encoded_file, encoded_picture
from chiasm.index.query.recent_queries import RecentQueries, Search
from chiasm.index.query.rerank import check_stages, rerank, reranker_fingerprints
from chiasm.index.query.scan import Allowed, ColumnIndex
from chiasm.index.query.search import EXTRA_CANDIDATES, search, search_scan
from chiasm.index.query.truth import (
    Ranked,
    exact_top,
    others_than_own,
    recall_of,
    rows_of_column,
    usable_rows,
    without_own,
)

__all__ = [
    "EXTRA_CANDIDATES",
    "Allowed",
    "Audits",
    "Calibration",
    "ColumnIndex",
    "Filter",
    "NotCalibrated",
    "OpenIndex",
    "QueryTokens",
    "Ranked",
    "Recalls",
    "RecentQueries",
    "Search",
    "TooFewCaptions",
    "add_keywords",
    "calibrate_index",
    "check_share",
    "check_stages",
    "compile_filter",
    "decoded_picture",
    "diversify",
    "encode_each",
    "encode_queries",
    "encode_with_tokens",
    "encoded_file",
    "encoded_picture",
    "exact_top",
    "explain_picture",
    "explain_search",
    "filter_for",
    "live_generation",
    "open_keywords",
    "open_live",
    "others_than_own",
    "p_absent",
    "pixels_of",
    "query_refused",
    "recall_of",
    "require_single_vectors",
    "require_words",
    "rerank",
    "reranker_fingerprints",
    "rows_of_column",
    "search",
    "search_filtered",
    "search_keywords",
    "search_lists",
    "search_scan",
    "search_tokens",
    "searches_tokens",
    "text_of",
    "usable_rows",
    "without_own",
]
