"""The picture-book world, a synthetic data set: world (facts), draw (pictures), words (captions and
their claims), samples (members of a shard), recall (how often a hit is true).

Everything is a function of seeds, so any scene, picture or caption can be made again anywhere.
"""
