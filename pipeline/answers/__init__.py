"""Shards -> answers of a model about their samples: one Parquet file a shard, and shards with the
captions added."""

from chiasm.pipeline.answers.added_captions import add_captions, has_captions, shard_copy_name
from chiasm.pipeline.answers.answer_shard import answer_shard
from chiasm.pipeline.answers.files import (
    FOLDERS,
    AnswersFooter,
    answers_name,
    find_answers,
    unanswered,
)
from chiasm.pipeline.answers.identity import (
    SHARD_TASKS,
    AnswerSettings,
    AnswersIdentity,
    create_or_check,
    read_identity,
)
from chiasm.pipeline.answers.summary import AnswersSummary

__all__ = [
    "FOLDERS",
    "SHARD_TASKS",
    "AnswerSettings",
    "AnswersFooter",
    "AnswersIdentity",
    "AnswersSummary",
    "add_captions",
    "answer_shard",
    "answers_name",
    "create_or_check",
    "find_answers",
    "has_captions",
    "read_identity",
    "shard_copy_name",
    "unanswered",
]
