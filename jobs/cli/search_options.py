"""Options of `chiasm search`."""

from __future__ import annotations

from typing import Annotated

import typer

from chiasm.pipeline.errors import UsageError

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TEXT]", help="In quotes; - reads lines of stdin."),
]
Count = Annotated[int, typer.Option("-k", min=1, help="How many results.")]
Pictures = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        metavar="[WEIGHT:]PICTURE",
        help="A picture to search by: a path, or a URL of http, https or s3. Can be repeated.",
    ),
]
Sounds = Annotated[
    list[str] | None,
    typer.Option(
        "--sound",
        metavar="[WEIGHT:]FILE",
        help="A sound to search by, as --image. Can be repeated.",
    ),
]
Members = Annotated[
    list[str] | None,
    typer.Option(
        "--member",
        metavar="MODALITY=[WEIGHT:]FILE",
        help="The same of any modality of the encoder, as in array=x.npy. Can be repeated.",
    ),
]
Plus = Annotated[
    list[str] | None,
    typer.Option(metavar="[WEIGHT: ]TEXT", help="Search by this text, too. Can be repeated."),
]
Minus = Annotated[
    list[str] | None,
    typer.Option(metavar="[WEIGHT: ]TEXT", help="Search away from this text. Can be repeated."),
]
Column = Annotated[
    str | None,
    typer.Option(
        help="image, text, joint, or another modality of the encoder. (default: image, or what "
        "the collection has in its place)"
    ),
]
Rerank = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STAGE",
        help="vectors:N, match:N, st:MODEL:N or hf:MODEL:N: score the first N again. Repeatable.",
    ),
]
Hybrid = Annotated[bool, typer.Option("--hybrid", help="Find captions that have the words, too.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SQL",
        help="Only rows for which this is true, of key, caption, width, meta.FIELD and so on.",
    ),
]
Dedup = Annotated[
    float | None,
    typer.Option(
        metavar="COSINE",
        help="Fold results under a better one that they are so like, as in 0.97.",
    ),
]
Diversity = Annotated[
    float,
    typer.Option(
        metavar="D",
        help="From 0 to 1: how far results like better ones give way to others, as in 0.3.",
    ),
]
QueryFile = Annotated[
    str | None,
    typer.Option(
        "--queries",
        metavar="FILE",
        help="Answer the queries of a .txt, .jsonl or .parquet file. Needs --to.",
    ),
]
HitsFile = Annotated[
    str | None, typer.Option("--to", metavar="FILE", help="The .parquet file of their results.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a query.")]
SheetFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Draw the results as one picture: .png, .jpg, .jpeg or .webp."
    ),
]
ExplainHits = Annotated[
    bool,
    typer.Option(
        "--explain-hits",
        help="On the sheet, lay heat over the patches that the score of each result rests on.",
    ),
]
AllowStale = Annotated[
    bool, typer.Option(help="Search an index that does not cover all embeddings.")
]
FalseAlarms = Annotated[
    float | None,
    typer.Option(
        metavar="RATE",
        help="Say where nothing here matches. RATE, such as 0.05: the share of queries without a "
        "match for which it is not said. With --where, the first such query takes some seconds.",
    ),
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain", help="Say which way the index was searched, and with --where why that one."
    ),
]
ReceiptFile = Annotated[
    str | None,
    typer.Option(
        "--receipt",
        metavar="FILE",
        help="Write what the answers were made of, for chiasm replay. With --json no seconds are "
        "printed.",
    ),
]
Audit = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Answer this share of the queries exactly at the end, and say what recall they had.",
    ),
]


def one_condition(where: list[str] | None) -> str | None:
    """The condition of --where, None for none; UsageError for several."""
    first, *more = where or [None]
    if more:
        raise UsageError(
            "--where",
            expected="one condition",
            found=f"{1 + len(more)}",
            do="write them as one: (CONDITION) AND (CONDITION)",
        )
    return first
