"""What the kinds of world 2 look like that world 1 has not, as in shapes.py: the two senses of each
ambiguous word, and faces with other moods.
"""

from __future__ import annotations

from chiasm.pipeline.scenes.shapes import (
    SHAPES,
    Shape,
    arc,
    both_sides,
    box,
    disc,
    inked,
    line,
    polygon,
)


def _birds_and_machines() -> dict[str, Shape]:
    return {
        "crane bird": Shape(
            (
                disc(-0.1, 0.02, 0.58, 0.36), polygon(-0.45, -0.2, -1, 0.42, -0.2, 0.32),
                *line(0.22, 0.3, -0.05, 0.52, -0.4, 0.34, -0.72), disc(0.4, -0.78, 0.2),
            ),
            rear=inked("ink", *line(0.12, -0.12, 0.3, -0.12, 0.98, 0.12, 0.98),
                         *line(0.12, 0.16, 0.3, 0.3, 0.62, 0.02, 0.74)),
            details=(
                ("wood", polygon(0.54, -0.9, 1, -0.7, 0.54, -0.66)),
                *inked("ink", disc(0.44, -0.82, 0.07), polygon(-0.5, 0.1, -1, 0.46, -0.5, 0.36)),
            ),
        ),
        "crane machine": Shape(
            (
                box(-0.62, -0.85, -0.24, 0.98), box(-1, -0.82, 1, -0.5),
                polygon(-0.43, -1, -0.1, -0.8, -0.76, -0.8), box(-0.95, 0.78, 0.1, 0.98),
                box(0.38, 0.16, 0.92, 0.62),
            ),
            rear=inked("ink", *line(0.1, 0.65, -0.6, 0.65, 0.2)),
            details=inked(
                "ink", *line(0.07, -0.62, -0.4, -0.24, 0.0, -0.62, 0.4, -0.24, 0.78),
                box(-1, -0.52, -0.72, -0.22),
            ),
        ),
    }  # fmt: skip


def _bats() -> dict[str, Shape]:
    return {
        "bat animal": Shape(
            (
                *both_sides(
                    polygon(0, -0.14, 0.3, -0.3, 0.62, -0.8, 0.86, -0.44, 1, 0.3, 0.8, 0.06, 0.66,
                            0.44, 0.46, 0.14, 0.26, 0.56, 0, 0.3),
                    polygon(0.04, -0.5, 0.3, -0.9, 0.34, -0.3),
                ),
                disc(0, -0.22, 0.34), disc(0, 0.2, 0.26, 0.5),
            ),
            details=(
                *inked("light", *both_sides(disc(0.14, -0.28, 0.12),
                                            polygon(0.03, -0.06, 0.15, -0.06, 0.09, 0.1))),
                *inked("ink", *both_sides(disc(0.13, -0.26, 0.06))),
            ),
        ),
        "bat club": Shape(
            (
                polygon(0.42, -0.98, 0.98, -0.42, 0.3, 0.28, -0.5, 0.82, -0.82, 0.5, -0.28, -0.3),
                disc(0.7, -0.7, 0.4), disc(-0.78, 0.78, 0.22),
            ),
            details=(
                *inked("ink", *line(0.34, -0.46, 0.46, -0.72, 0.72)),
            ),
        ),
    }  # fmt: skip


def _bows() -> dict[str, Shape]:
    return {
        "bow ribbon": Shape(
            (
                *both_sides(
                    polygon(0, -0.18, 0.72, -0.78, 1, -0.62, 1, 0.26, 0.72, 0.4, 0, 0.02),
                    polygon(0.02, 0, 0.2, -0.02, 0.72, 0.86, 0.44, 0.84, 0.3, 1),
                ),
                box(-0.24, -0.4, 0.24, 0.16),
            ),
            details=(
                *inked("shade", box(-0.22, -0.38, 0.22, 0.14)),
                *inked("ink", *both_sides(*line(0.08, 0.24, -0.16, 0.62, -0.3)),
                       *both_sides(*line(0.08, 0.24, -0.06, 0.6, 0.08))),
            ),
        ),
        "bow weapon": Shape(
            (arc(-0.5, 0, 0.98, 0.86, 0.34, -82, 82),),
            rear=inked("ink", *line(0.07, -0.36, -0.88, -0.36, 0.88)),
            details=(
                *inked("wood", *line(0.13, -0.8, 0, 0.8, 0)),
                *inked("ink", polygon(0.66, -0.26, 1.04, 0, 0.66, 0.26),
                       polygon(-1, -0.24, -0.76, -0.24, -0.6, 0, -0.76, 0.24, -1, 0.24, -0.84, 0)),
            ),
        ),
    }  # fmt: skip


def _nails() -> dict[str, Shape]:
    return {
        "nail finger": Shape(
            (disc(0, -0.38, 0.46, 0.56), box(-0.46, -0.4, 0.46, 0.1), disc(0, 0.06, 0.46, 0.26)),
            rear=inked("skin", disc(0, -0.22, 0.72, 0.74), box(-0.72, -0.22, 0.72, 1)),
            details=(
                ("light", arc(0, -0.3, 0.26, 0.4, 0.12, 190, 260)),
                *inked("ink", box(-0.34, 0.56, 0.34, 0.63), box(-0.26, 0.74, 0.26, 0.81)),
            ),
        ),
        "nail metal": Shape(
            (
                disc(0, -0.78, 0.78, 0.22),
                polygon(-0.3, -0.75, 0.3, -0.75, 0.26, 0.45, 0, 1, -0.26, 0.45),
            ),
            details=(
                ("shade", disc(0, -0.83, 0.6, 0.12)),
                *inked("ink", box(-0.26, -0.41, 0.26, -0.35), box(-0.26, -0.25, 0.26, -0.19)),
            ),
        ),
    }  # fmt: skip


def _mice() -> dict[str, Shape]:
    return {
        "mouse animal": Shape(
            (
                disc(0.12, 0.28, 0.66, 0.5), polygon(-0.98, 0.36, -0.3, -0.16, -0.2, 0.7),
                disc(-0.08, -0.42, 0.44), disc(0.44, -0.4, 0.34),
            ),
            rear=inked("ink", *line(0.12, 0.6, 0.6, 0.96, 0.5, 0.98, -0.1, 0.84, -0.4)),
            details=(
                ("shade", disc(-0.08, -0.42, 0.28)), ("shade", disc(0.46, -0.42, 0.2)),
                *inked("light", disc(-0.46, 0.1, 0.16)),
                *inked("ink", disc(-0.49, 0.11, 0.1), disc(-0.94, 0.36, 0.12),
                       *line(0.05, -0.74, 0.42, -0.98, 0.7), *line(0.05, -0.64, 0.46, -0.7, 0.78)),
                *inked("wood", disc(-0.24, 0.8, 0.16, 0.1), disc(0.36, 0.8, 0.18, 0.1)),
            ),
        ),
        "mouse computer": Shape(
            (disc(0, -0.02, 0.64, 0.56), box(-0.64, 0, 0.64, 0.4), disc(0, 0.4, 0.64, 0.58)),
            rear=inked("ink", *line(0.11, 0, -0.5, 0, -0.74, 0.34, -0.8, 0.4, -1)),
            details=(
                *inked("ink", box(-0.62, 0.14, 0.62, 0.22), box(-0.04, -0.54, 0.04, 0.18),
                       disc(0, -0.2, 0.15, 0.22)),
                ("light", disc(0, -0.2, 0.08, 0.14)),
            ),
        ),
    }  # fmt: skip


def _palms_and_letters() -> dict[str, Shape]:
    fingers = line(0.28, -0.36, 0.2, -0.5, -0.66), line(0.28, -0.12, 0.1, -0.16, -0.84)
    fingers += line(0.28, 0.14, 0.1, 0.2, -0.8), line(0.26, 0.36, 0.2, 0.54, -0.56)
    tips = disc(-0.5, -0.68, 0.14), disc(-0.16, -0.86, 0.14), disc(0.2, -0.82, 0.14)
    tips += disc(0.54, -0.58, 0.13), disc(-0.88, 0.06, 0.15)
    fronds = both_sides(
        polygon(0, -0.5, 0.5, -0.82, 0.98, -0.42, 1, -0.1, 0.7, -0.36, 0.3, -0.4),
        polygon(0, -0.5, 0.46, -0.42, 0.76, 0.06, 0.66, 0.3, 0.42, -0.06, 0.1, -0.3),
        polygon(0, -0.42, 0.14, -0.98, 0.5, -0.98, 0.34, -0.8, 0.22, -0.5),
    )
    return {
        "palm hand": Shape(
            (
                *(part for finger in fingers for part in finger), *tips,
                *line(0.3, -0.3, 0.52, -0.86, 0.08), disc(0.02, 0.36, 0.5, 0.48),
                box(-0.3, 0.5, 0.34, 1),
            ),
            details=inked("ink", *line(0.06, -0.28, 0.22, 0.3, 0.14),
                          arc(-0.3, 0.62, 0.34, 0.34, 0.06, -80, 10)),
        ),
        "palm tree": Shape(
            (*fronds, disc(0, -0.42, 0.2)),
            rear=inked("wood", polygon(-0.1, -0.45, 0.12, -0.45, 0.1, 0.2, 0.26, 1, -0.2, 1)),
            details=inked("wood", disc(-0.14, -0.22, 0.14), disc(0.14, -0.2, 0.14)),
        ),
        "letter mail": Shape(
            (box(-1, -0.66, 1, 0.68),),
            details=(
                *inked("ink", *line(0.09, -0.96, -0.62, 0, 0.12, 0.96, -0.62),
                       *line(0.07, -0.94, 0.62, -0.34, -0.08),
                       *line(0.07, 0.94, 0.62, 0.34, -0.08)),
                ("light", disc(0, 0.08, 0.2)),
            ),
        ),
        "letter character": Shape(
            (polygon(-0.26, -0.95, 0.26, -0.95, 0.98, 0.95, 0.44, 0.95, 0.3, 0.5, -0.3, 0.5,
                     -0.44, 0.95, -0.98, 0.95),),
            cuts=(polygon(0, -0.42, 0.2, 0.16, -0.2, 0.16),),
        ),
    }  # fmt: skip


def _clocks_and_bells() -> dict[str, Shape]:
    return {
        "clock": Shape(
            (disc(0, -0.14, 0.8), box(-0.8, -0.14, 0.8, 0.9), box(-0.98, 0.72, 0.98, 0.96)),
            details=(
                ("ink", disc(0, -0.14, 0.56)), ("light", disc(0, -0.14, 0.48)),
                *inked("ink", *line(0.11, 0, -0.52, 0, -0.12, 0.28, -0.02)),
            ),
        ),
        "bell": Shape(
            (
                disc(0, -0.3, 0.54), box(-0.54, -0.3, 0.54, 0.25),
                polygon(-0.54, 0.1, 0.54, 0.1, 0.96, 0.66, -0.96, 0.66), disc(0, -0.86, 0.17),
            ),
            rear=inked("wood", disc(0, 0.74, 0.26)),
            details=(*inked("shade", box(-0.9, 0.5, 0.9, 0.66)), ("ink", disc(0, -0.88, 0.08))),
        ),
    }  # fmt: skip


def _sheep_and_goats() -> dict[str, Shape]:
    wool = ((-0.5, 0.1), (-0.3, -0.28), (0.1, -0.4), (0.5, -0.26), (0.7, 0.1), (0.44, 0.34))
    legs = (*line(0.17, -0.28, 0.3, -0.28, 0.98), *line(0.17, 0.48, 0.3, 0.48, 0.98))
    return {
        "sheep": Shape(
            (*(disc(x, y, 0.3) for x, y in (*wool, (-0.2, 0.36))), disc(0.1, 0, 0.56, 0.4)),
            rear=inked("ink", *legs),
            details=(
                *inked("ink", disc(-0.68, -0.1, 0.28, 0.34), disc(-0.4, -0.28, 0.18, 0.1),
                       disc(-0.94, -0.28, 0.12, 0.08)),
                ("light", disc(-0.72, -0.14, 0.09)),
            ),
        ),
        "goat": Shape(
            (
                disc(0.2, 0.16, 0.6, 0.32), polygon(-0.36, 0.2, -0.7, -0.5, -0.3, -0.62, 0.2, 0),
                polygon(-0.34, -0.62, -0.6, -0.66, -1, -0.2, -0.86, -0.04, -0.4, -0.2),
                polygon(0.66, 0.1, 0.84, -0.36, 0.96, -0.3, 0.86, 0.2),
            ),
            rear=inked("ink", *legs, *line(0.13, -0.12, 0.3, -0.12, 0.98),
                         *line(0.13, 0.66, 0.2, 0.68, 0.98)),
            details=(
                *inked("wood", arc(-0.2, -0.58, 0.34, 0.36, 0.15, 180, 300),
                       polygon(-0.9, -0.08, -0.66, -0.1, -0.74, 0.36)),
                *inked("ink", disc(-0.6, -0.36, 0.08)),
            ),
        ),
    }  # fmt: skip


def _towers() -> dict[str, Shape]:
    return {
        "tower": Shape(
            (
                polygon(-0.14, -0.75, 0.14, -0.75, 0.3, -0.1, 0.5, 0.45, 0.86, 1, -0.86, 1,
                        -0.5, 0.45, -0.3, -0.1),
                box(-0.5, -0.14, 0.5, 0.08), box(-0.7, 0.4, 0.7, 0.62),
                box(-0.07, -1, 0.07, -0.7),
            ),
            cuts=(disc(0, 1.02, 0.36, 0.34),),
            details=inked("ink", *both_sides(*line(0.07, -0.32, 0.12, 0.38, 0.38))),
        ),
        "pagoda": Shape(
            (
                polygon(0, -1, 0.16, -0.74, 0.66, -0.42, 0.5, -0.36, -0.5, -0.36, -0.66, -0.42,
                        -0.16, -0.74),
                box(-0.44, -0.4, 0.44, 0),
                polygon(-0.44, -0.12, 0.44, -0.12, 0.84, 0.16, 0.66, 0.22, -0.66, 0.22,
                        -0.84, 0.16),
                box(-0.54, 0.16, 0.54, 0.5),
                polygon(-0.54, 0.42, 0.54, 0.42, 1, 0.68, 0.8, 0.74, -0.8, 0.74, -1, 0.68),
                box(-0.64, 0.7, 0.64, 1),
            ),
            details=inked(
                "ink", box(-0.5, -0.38, 0.5, -0.31), box(-0.66, 0.2, 0.66, 0.27),
                box(-0.8, 0.72, 0.8, 0.79), box(-0.15, 0.78, 0.15, 1),
            ),
        ),
    }  # fmt: skip


def _faces() -> dict[str, Shape]:
    head = disc(0, 0, 0.92)
    eyes = (
        *inked("light", *both_sides(disc(0.36, -0.25, 0.22))),
        *inked("ink", *both_sides(disc(0.36, -0.22, 0.13))),
    )
    tears = both_sides(disc(0.42, 0.4, 0.17, 0.2), polygon(0.42, -0.04, 0.26, 0.36, 0.58, 0.36))
    return {
        "crying face": Shape(
            (head,),
            details=(
                *eyes, *inked("ink", *both_sides(*line(0.1, 0.12, -0.62, 0.6, -0.5))),
                *inked("ink", arc(0, 0.72, 0.34, 0.34, 0.16, 200, 340)), *inked("tear", *tears),
            ),
        ),
        # Narrow eyes, since a mouth in ink is not seen on a black face.
        "calm face": Shape(
            (head,),
            details=(
                *inked("ink", *both_sides(box(0.12, -0.36, 0.64, -0.02)),
                       box(-0.5, 0.36, 0.5, 0.54)),
                *inked("light", *both_sides(box(0.16, -0.22, 0.6, -0.04))),
                *inked("ink", *both_sides(box(0.3, -0.22, 0.46, -0.02))),
            ),
        ),
    }  # fmt: skip


SHAPES_OF_BOTH: dict[str, Shape] = {
    **SHAPES, **_birds_and_machines(), **_bats(), **_bows(), **_nails(), **_mice(),
    **_palms_and_letters(), **_clocks_and_bells(), **_sheep_and_goats(), **_towers(), **_faces(),
}  # fmt: skip
