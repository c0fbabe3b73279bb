"""A query's way: opened index, encoded query, search, rerank."""

from chiasm.index.query.encode import (
    encode_each,
    encode_queries,
    pixels_of,
    query_refused,
    text_of,
)
from chiasm.index.query.filter_rows import Filter
from chiasm.index.query.filters import compile_filter
from chiasm.index.query.open_index import OpenIndex, live_generation
from chiasm.index.query.query_picture import encoded_picture
from chiasm.index.query.rerank import check_stages, rerank
from chiasm.index.query.scan import ColumnIndex
from chiasm.index.query.search import search

__all__ = [
    "ColumnIndex",
    "Filter",
    "OpenIndex",
    "check_stages",
    "compile_filter",
    "encode_each",
    "encode_queries",
    "encoded_picture",
    "live_generation",
    "pixels_of",
    "query_refused",
    "rerank",
    "search",
    "text_of",
]
