"""A collection searched by words, by a picture, and by both.

python examples/embed.py
python examples/search.py scenes.chiasm "a flower in a meadow"
"""

import argparse
from pathlib import Path

from chiasm import open_collection

parser = argparse.ArgumentParser()
parser.add_argument("collection", nargs="?", default="scenes.chiasm")
parser.add_argument("words", nargs="?", default="a flower in a meadow")
given = parser.parse_args()

collection = open_collection(given.collection)


def show(title, answer):
    print(title)
    for hit in answer:
        print(f"  {hit.rank}. {hit.score:.3f}  {hit.caption}  ({hit.id})")


pictures = collection.search(given.words, k=3)
show(f"pictures for {given.words!r}:", pictures)

best = pictures[0].picture()  # the encoded file, by one range read of its shard
Path("best").with_suffix(Path(pictures[0].place.member).suffix).write_bytes(best)
show("pictures like the first:", collection.search(image=best, k=3))
show("captions for the first:", collection.search(image=best, column="text", k=3))
show("like the first, at night:", collection.search("at night", image=best, k=3))
