"""The picture-book world, in the order of its making: world (facts), draw (pictures), words
(captions and the claims they make), samples (what a shard holds), recall (how often a hit is true).

All of it follows from seeds, so that any scene, picture or caption can be made again anywhere.
"""
