"""Rankings: what a run lists for each query, checked, in order, and as positions in the gallery.

What a single query has wrong is a fault, and its other items count. A run that is wrong as a whole, in which no path is
known or no score is a number, is refused: its table of zeros would say nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from itertools import chain, repeat
from typing import Any, Callable, Iterable, NamedTuple

import numpy as np

from soir import geometry
from soir.files import SoirError
from soir.findings import Findings, progress_bar, shorten
from soir.paths import spelling_finder, why_unknown
from soir.protocol import Ranking, Task
from soir.runs import FORMS, Listed, RunFile, in_words, open_run

# In place of a position in the gallery: UNKNOWN for a path that is no gallery image, OTHER for a path that --set or
# --split leaves out.
UNKNOWN, OTHER = -1, -2

# Faults.
ODD_PATH = "query that ranks a path that is no gallery image here, counted as wrong"
ODD_SCORE = "query with a score that is no finite number, its image counted as not retrieved"
ODD_BOX = "query with a box that is not (x1, y1, x2, y2), ignored"
ODD_ORDER = "query whose scores neither fall nor rise, taken in the order of its list"
UPSIDE_DOWN = "run whose scores rise from rank 1 on, where the highest score is best: negate them"
NOTHING = "run whose lists are empty, or of images only that the queries do not compete over"

# What may be a fault.
RISING = "run whose scores rise in the order of the file, as distances and ranks do: the highest is best; negate them"
CONTRADICTED = "query whose scores contradict its ranks; the scores count, as in trec_eval"
IN_SHARES = "run whose boxes lie within 0..1: if they are shares of the image, its IoU means nothing"
PADDED = "query whose row of indices ends in one index again and again: -1 stands for what was not found"
ALIKE = "run that ranks the same images in the same order for every query"
SPELLED = "path in another spelling (./x for x, or another Unicode form), taken for the one path that it fits"

# If all scores rise, but in fewer steps than this, it may be by chance.
FEWEST_STEPS = 3


class Checked(NamedTuple):
    """What a run lists for a query, as arrays."""

    positions: np.ndarray  # int64 [N], in the gallery, or UNKNOWN, or OTHER
    respelled: str | None  # a path that is in another spelling there
    scores: np.ndarray | None  # float64 [N], NaN for none that is usable
    odd_scores: np.ndarray  # bool [N]: there is something else than a finite number
    boxes: np.ndarray | None  # float64 [N, 4], NaN for none that is usable
    odd_boxes: np.ndarray  # bool [N]: there is something else than (x1, y1, x2, y2)


def read_run(path: str, task: Task, findings: Findings) -> list[Ranking]:
    """The ranking of each query of a task, in their order, from a file.

    Raises SoirError if the file is in none of the forms, or for what `rank_as_listed` refuses.
    """
    return rank_as_listed(open_run(path), path, task, findings)


def rank_as_listed(run: RunFile, place: str, task: Task, findings: Findings) -> list[Ranking]:
    """The ranking of each query of a task, in their order.

    place  what messages call the run: the path of its file
    Raises SoirError if a run has rankings for none of the queries, none of the gallery, or scores that are no numbers.
    """
    find_query, find_image = spelling_finder(task.queries), spelling_finder(task.gallery)
    names = list(run.queries)
    name_of: dict[str, Any] = {}  # query -> its name in the run
    for name in names:
        query = find_query(name)
        if query is not None and (query not in name_of or name == query):
            name_of[query] = name
        elif name not in task.others:
            findings.skip("ranking of a path that is no query here", shorten(name))
    if not name_of:
        found = f"paths like {shorten(names[0])}" if names else "nothing"
        hint = why_unknown(str(names[0]), task.queries) if names else ""
        expected = f"expected paths like {task.queries[0]}, found {found}{hint}"
        raise SoirError(f"{place} has a ranking for none of the queries: {expected}; {FORMS}")
    numbers: dict[Any, int] = dict.fromkeys(task.others, OTHER)
    numbers.update((name, position) for position, name in enumerate(task.gallery))
    allowed = [_allowed_positions(task, kind) for kind in range(len(task.candidates))]

    rankings = []
    tally: Counter[str] = Counter()  # paths that are listed; are known; of these, have a score or need none
    unknown = respelled = None  # the first path that is no gallery image, and the first that is one in another spelling
    odd_score = None  # the first, in words
    steps: list[Steps] = []
    for query, kind in progress_bar("reading", list(zip(task.queries, task.kinds))):
        listed = run.listed(name_of[query]) if query in name_of else None
        if listed is None:
            findings.skip("query without a ranking, scored 0", query)
            listed = Listed([])
        if listed.is_padded:
            findings.notice(PADDED, query)
        checked = check(listed, numbers, find_image)
        known = checked.positions != UNKNOWN
        usable = known & ~checked.odd_scores
        tally.update(listed=len(known), known=int(known.sum()), usable=int(usable.sum()))
        if unknown is None and not known.all():
            unknown = listed.odd or shorten(listed.paths[known.argmin()])
        if odd_score is None and checked.odd_scores.any():
            odd_score = in_words(listed.scores[checked.odd_scores.argmax()])
        respelled = respelled or checked.respelled
        steps += count_steps(query, listed, checked.scores)
        rankings.append(put_in_order(query, listed, checked, allowed[kind], findings))

    if tally["listed"] and not tally["known"]:
        hint = why_unknown(str(unknown), task.gallery)
        expected = f"expected gallery paths like {task.gallery[0]}, found {unknown}{hint}"
        raise SoirError(f"{place} ranks none of the gallery images: {expected}; {FORMS}")
    if tally["listed"] and not tally["usable"]:
        raise SoirError(f"{place} has no score that is a finite number, found {odd_score}; {FORMS}")
    if respelled:
        findings.notice(SPELLED, f"{place}: {respelled}")
    judge_steps(steps, place, findings)
    if not any(len(ranking.positions) for ranking in rankings):
        findings.skip(NOTHING, place)
    elif len(set(task.instances.tolist())) > 1 and len({ranking.positions.tobytes() for ranking in rankings}) == 1:
        findings.notice(ALIKE, place)
    report_shares(place, (ranking.boxes for ranking in rankings if ranking.boxes is not None), findings)
    return rankings


def _allowed_positions(task: Task, kind: int) -> np.ndarray:
    """bool [gallery + 2]: by position, whether an image stays in a ranking; at the end those of OTHER and UNKNOWN."""
    allowed = np.zeros(len(task.gallery) + 2, dtype=bool)
    allowed[task.candidates[kind]] = True
    allowed[UNKNOWN] = True
    return allowed


class Steps(NamedTuple):
    """How the scores of a query go on, where they alone make the order: by its ranks, or as the file has them."""

    query: str
    up: int  # from one to a higher one
    down: int
    has_ranks: bool


def count_steps(query: str, listed: Listed, scores: np.ndarray | None) -> list[Steps]:
    """The steps of a query, if there are any; those of a matrix, which has the order of the gallery, tell nothing."""
    if scores is None or listed.is_ordered or isinstance(listed.scores, np.ndarray):
        return []
    differences = np.diff(scores if listed.ranks is None else scores[np.argsort(listed.ranks)])
    up, down = int(np.count_nonzero(differences > 0)), int(np.count_nonzero(differences < 0))
    return [Steps(query, up, down, listed.ranks is not None)] if up or down else []


def judge_steps(steps: list[Steps], place: str, findings: Findings) -> None:
    """Add to the findings scores that may be distances or ranks."""
    if any(one.down for one in steps):
        for one in steps:
            if one.up and one.has_ranks:
                findings.notice(CONTRADICTED, one.query)
    elif steps and steps[0].has_ranks:
        findings.skip(UPSIDE_DOWN, place)
    elif sum(one.up for one in steps) >= FEWEST_STEPS:
        findings.notice(RISING, place)


def report_shares(place: str, parts: Iterable[np.ndarray], findings: Findings) -> None:
    """Add a run to the findings if most of its boxes are shares of the image.

    parts  its boxes, float64 [N, 4] each; those that are NaN do not count
    """
    shares = known = 0
    for boxes in parts:
        known += int(np.count_nonzero(~np.isnan(boxes[:, 0])))
        shares += int(np.count_nonzero(((boxes >= 0) & (boxes <= 1)).all(axis=1)))
    if shares > known / 2:
        findings.notice(IN_SHARES, place)


def check(listed: Listed, numbers: dict[Any, int], find_image: Callable[[Any], str | None]) -> Checked:
    """Turn what is listed for a query into arrays.

    numbers     path -> position in the gallery, or OTHER
    find_image  a path in another spelling -> that of the gallery
    """
    count, respelled = len(listed.paths), None
    positions = np.fromiter(map(numbers.get, listed.paths, repeat(UNKNOWN)), dtype=np.int64, count=count)
    for index in np.flatnonzero(positions == UNKNOWN).tolist():
        name = find_image(listed.paths[index])
        if name is not None:
            positions[index], respelled = numbers[name], shorten(listed.paths[index])
    nothing = np.zeros(count, dtype=bool)
    scores, odd_scores = (None, nothing) if listed.scores is None else as_scores(listed.scores)
    boxes, odd_boxes = (None, nothing) if listed.boxes is None else as_boxes(listed.boxes)
    if scores is not None and not listed.is_ordered:
        odd_scores = odd_scores | np.isnan(scores)  # without an order, an image without a score has no place
    return Checked(positions, respelled, scores, odd_scores, boxes, odd_boxes)


def put_in_order(query: str, listed: Listed, checked: Checked, allowed: np.ndarray, findings: Findings) -> Ranking:
    """Take out the images that a query does not compete over, and order ties.

    allowed  bool [gallery + 2], by position: whether an image stays in the ranking, see `_allowed_positions`
    """
    positions, _, scores, odd_scores, boxes, odd_boxes = checked
    kept = allowed[positions]
    for reason, is_odd in (
        (ODD_PATH, positions == UNKNOWN),
        (ODD_SCORE, odd_scores & kept),
        (ODD_BOX, odd_boxes & kept & ~odd_scores),
    ):
        if is_odd.any():  # one place per query: of a million paths, all may be unknown
            first, number = int(is_odd.argmax()), np.count_nonzero(is_odd)
            more = f" and {number - 1:,} more" if number > 1 else ""
            findings.skip(reason, f"{query}: {shorten(listed.paths[first])}{more}")
    order = np.flatnonzero(kept & ~odd_scores)
    if scores is not None and not listed.is_ordered:
        order = order[np.lexsort((positions[order], -scores[order]))]
    order = order[is_first(positions[order])]
    if scores is not None and listed.is_ordered:
        given = scores[order][~np.isnan(scores[order])]
        if len(given) > 1 and np.ptp(given) == 0:  # they say nothing, the order of the list does
            scores = None
        else:
            if not is_monotone(scores[order]):
                findings.skip(ODD_ORDER, query)
            order = order[order_ties(scores[order], positions[order])]
    if boxes is not None:
        boxes = None if np.isnan(boxes[order]).all() else boxes[order]
    return Ranking(positions[order], None if scores is None else scores[order], boxes)


def as_scores(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [N], NaN where there is no usable score; bool [N], whether what is there is no finite number).

    values  an array, or a list of numbers, None, and arrays or tensors of a single number
    """
    if set(map(type, values)) <= {int, float}:  # nearly always; this takes a fifth of the time
        with suppress(OverflowError):  # an integer beyond any float
            values = np.array(values, dtype=np.float64)
    if not isinstance(values, np.ndarray):
        values = [value.tolist() if getattr(value, "ndim", None) == 0 else value for value in values]
        is_number = [type(value) in (int, float) and -MAX_FLOAT <= value <= MAX_FLOAT for value in values]
        is_odd = np.array([not is_sound and v is not None for is_sound, v in zip(is_number, values)], dtype=bool)
        sound = (value if is_sound else math.nan for is_sound, value in zip(is_number, values))
        return np.fromiter(sound, np.float64, len(values)), is_odd
    scores = values.astype(np.float64)
    is_odd = ~np.asarray(np.isfinite(scores), dtype=bool)
    scores[is_odd] = np.nan
    return scores, is_odd


MAX_FLOAT = float(np.finfo(np.float64).max)


def as_boxes(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [N, 4], NaN where there is no usable box; bool [N], whether what is there is not (x1, y1, x2, y2)).

    values  an array, in which NaN is no box, or a list of boxes and None; a box may be an array or a tensor
    """
    if not isinstance(values, np.ndarray):
        values = [value.tolist() if getattr(value, "shape", None) == (4,) else value for value in values]
        is_sound = np.fromiter(map(geometry.is_box, values), bool, len(values))
        is_odd = ~is_sound & np.array([value is not None for value in values], dtype=bool)
        no_box = (math.nan,) * 4
        sound = chain.from_iterable(value if ok else no_box for value, ok in zip(values, is_sound.tolist()))
        return np.fromiter(sound, np.float64, 4 * len(values)).reshape(-1, 4), is_odd
    boxes = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        is_sound = np.asarray((np.abs(boxes) <= geometry.MAX_COORDINATE).all(axis=1))
        is_sound &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    is_odd = np.asarray(~is_sound & ~np.isnan(boxes).all(axis=1))
    boxes[~is_sound] = np.nan
    return boxes, is_odd


def is_first(positions: np.ndarray) -> np.ndarray:
    """bool [N]: whether a position stands here for the first time. UNKNOWN always does: it may be any path."""
    order = np.arange(len(positions))
    first = np.zeros(max(positions.max(initial=0), 0) + 3, dtype=np.int64)  # UNKNOWN and OTHER count from its end
    first[positions[::-1]] = order[::-1]  # of several, the last to be written, so the first in the ranking, stays
    return np.asarray((first[positions] == order) | (positions == UNKNOWN))


def is_monotone(scores: np.ndarray) -> bool:
    """Whether the scores that are given fall, or rise, all the way."""
    steps = np.diff(scores[~np.isnan(scores)])
    return not ((steps > 0).any() and (steps < 0).any())


def order_ties(scores: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """int64 [N]: the order in which each stretch of equal scores is in gallery order. NaN is equal to nothing."""
    is_new = np.ones(len(scores), dtype=bool)
    is_new[1:] = scores[1:] != scores[:-1]
    if is_new.all():
        return np.arange(len(scores))
    return np.asarray(np.lexsort((positions, np.cumsum(is_new))))
