import itertools
import math

import torch
from torch.nn import functional as F

from fmwiss.foundation.scores import class_scores, compete, denoise_prompts, smooth_by_keys


def test_a_class_has_the_score_of_its_best_row() -> None:
    torch.manual_seed(0)
    features = F.normalize(torch.randn(2, 5, 3, 4), dim=1)
    rows = F.normalize(torch.randn(4, 5), dim=1)
    owner = torch.tensor([1, 0, 1, 2])
    scores = class_scores(features, rows, owner, 3)
    for image, label, y, x in itertools.product(range(2), range(3), range(3), range(4)):
        place = features[image, :, y, x]
        expected = max(float(place @ rows[row]) for row in range(4) if owner[row] == label)
        assert math.isclose(float(scores[image, label, y, x]), expected, abs_tol=1e-6)


def test_background_names_claim_the_places_where_they_are_best() -> None:
    classes = torch.tensor([[0.5, 0.2, 0.4], [0.1, 0.3, 0.6]])
    background = torch.tensor([[0.4, 0.4, 0.1], [0.0, 0.1, 0.2]])
    scores = torch.cat((classes, background)).view(1, 4, 1, 3)
    expected = torch.tensor([[0.5, 0.2, 0.4], [0.1, 0.1, 0.6]]).view(1, 2, 1, 3)
    # The second image is the first, lower by 1: neither decides what is lowest in the other.
    scores, expected = torch.cat((scores, scores - 1)), torch.cat((expected, expected - 1))
    torch.testing.assert_close(compete(scores, 2), expected)


def test_a_name_that_is_nowhere_the_best_is_dropped_in_that_image_only() -> None:
    first = torch.tensor([[0.5, 0.6], [0.4, 0.5]])
    second = torch.tensor([[0.5, 0.1], [0.4, 0.5]])
    scores = torch.stack((first, second)).view(2, 2, 1, 2)
    expected = torch.stack((torch.tensor([[0.5, 0.6], [-1.0, -1.0]]), second)).view(2, 2, 1, 2)
    torch.testing.assert_close(denoise_prompts(scores), expected)


def test_smoothing_by_hand() -> None:
    scores = torch.tensor([[0.02, 0.0, 0.01], [0.0, 0.01, 0.01]]).view(1, 2, 1, 3)
    keys = torch.tensor([[1.0, 0.6, -1.0], [0.0, 0.8, 0.0]]).view(1, 2, 1, 3)
    first = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1)), 0.5]
    # Cosines: 0 and 1 share .6; 2 opposes both and takes nothing from them.
    expected = [(first[0] + 0.6 * first[1]) / 1.6, (0.6 * first[0] + first[1]) / 1.6, first[2]]
    smoothed = smooth_by_keys(scores, 3 * keys)
    torch.testing.assert_close(smoothed[0, 0, 0], torch.tensor(expected))
    torch.testing.assert_close(smoothed.sum(1), torch.ones(1, 1, 3))
