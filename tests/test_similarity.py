"""Ranking by features (soir/similarity.py): equal vectors tie, and ties are in the order of the gallery."""

import numpy as np
import pytest
from helpers import (
    average_precision,
    by_cosine,
    gallery_of,
    make_photograph,
    make_query,
    queries_of,
    relevant_paths,
    score,
)


def test_equal_vectors_tie_whatever_the_shape(tmp_path):
    """Libraries round equal columns of some shapes differently, so shapes are drawn at random. Multiples of a vector
    are equal, and so are 0.0 and -0.0. The order is that of a Python sort."""
    rng = np.random.RandomState(0)
    for shape in range(60):
        count, images, dimension = rng.randint(1, 65), rng.randint(1, 61), rng.choice((3, 8, 64, 100))
        distinct = rng.randint(-999, 999, (max(1, images // rng.choice((1, 2, 40))), dimension)).astype(np.float32)
        distinct[:, 0] = 0  # the others are whole numbers, so that their multiples are exact
        asked = rng.randn(max(1, count // rng.choice((1, 2))), dimension).astype(np.float32)
        annotations, vectors = {}, {}
        for number in range(count):
            annotations[f"query {number}"] = make_query(number % 3)
            vectors[f"query {number}"] = asked[rng.randint(len(asked))]
        for number in range(images):
            shown = [0] if number == 0 else [int(instance) for instance in range(3) if rng.rand() < 0.5]
            annotations[f"image {number}"] = make_photograph(shown)
            vectors[f"image {number}"] = distinct[rng.randint(len(distinct))] * np.float32(rng.choice((1, 2, 3, 7)))
            vectors[f"image {number}"][0] *= rng.choice((1, -1))
        index = {"paths": list(vectors), "features": np.stack(list(vectors.values()))}
        np.savez(str(tmp_path / "f.npz"), **(index if shape % 4 else vectors))
        args = ("--trec", tmp_path / "out.run") if shape % 4 == 0 else ()
        done, _, rows = score(tmp_path, annotations, "--features", tmp_path / "f.npz", *args)
        assert done.returncode == 0, done.stdout + done.stderr
        ranked = {query: by_cosine(query, gallery_of(annotations), vectors) for query in queries_of(annotations)}
        for query, row in rows.items():
            expected = average_precision(ranked[query], relevant_paths(annotations, query))
            assert float(row["AP"]) == pytest.approx(expected, abs=1e-12), (shape, query)
        if args:
            lines = [line.split() for line in (tmp_path / "out.run").read_text().splitlines()]
            for query in queries_of(annotations):
                written = [fields[2] for fields in lines if fields[0] == query.replace(" ", "%20")]
                assert written == [path.replace(" ", "%20") for path in ranked[query]]


@pytest.mark.parametrize("count", [1, 5, 33, 150, 200])
@pytest.mark.parametrize("values", [1, 3, 10_000])
def test_ranks_are_those_of_a_sort_however_many_there_are_and_however_many_tie(count, values):
    from soir.similarity import rank_images

    rng = np.random.RandomState(count)
    similarities = rng.randint(0, values, 200).astype(np.float32)
    at = np.sort(rng.choice(200, count, replace=False))
    order = sorted(range(200), key=lambda image: -similarities[image])
    ranks, images = rank_images(similarities, at)
    assert list(zip(ranks.tolist(), images.tolist())) == [
        (rank, image) for rank, image in enumerate(order, 1) if image in set(at.tolist())
    ]
