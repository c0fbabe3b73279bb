"""Random edits and queries, against a dictionary and numpy.

`python -m benchmarks.index_edits` makes ten thousand of them.
"""

from __future__ import annotations

from edited_index import EditedIndex
from hypothesis import Phase, settings

# Without shrinking, which takes minutes where a step is an edit.
EditedIndex.TestCase.settings = settings(
    max_examples=4, stateful_step_count=30, phases=(Phase.explicit, Phase.generate)
)
TestEditedIndex = EditedIndex.TestCase
