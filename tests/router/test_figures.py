import math

import pytest
import torch

from router.figures import auroc, brier, calibration_error, kendall, reliability


def test_auroc_of_perfect_inverted_and_useless_scores() -> None:
    labels = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert auroc(torch.tensor([0.1, 0.2, 0.3, 0.4]), labels) == 1.0
    assert auroc(torch.tensor([0.4, 0.3, 0.2, 0.1]), labels) == 0.0
    assert auroc(torch.tensor([0.1, 0.4, 0.2, 0.3]), labels) == 0.5
    assert auroc(torch.ones(4), labels) == 0.5  # ties count half
    assert math.isnan(auroc(torch.rand(4), torch.ones(4)))


def test_auroc_of_shares_is_that_of_the_single_answers() -> None:
    scores, shares = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.25, 0.5, 1.0])
    answers = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1])
    assert auroc(scores, shares) == pytest.approx(auroc(scores.repeat_interleave(4), answers))
    assert brier(scores, shares) == pytest.approx(float(((scores.repeat_interleave(4) - answers) ** 2).mean()))


def test_calibration_error_and_reliability_compare_predictions_with_shares() -> None:
    scores = torch.tensor([0.25, 0.25, 0.85, 0.85])
    labels = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert calibration_error(scores, labels) == pytest.approx(0.5 * 0.25 + 0.5 * 0.15)
    points = reliability(torch.cat([scores, scores[:1]]), torch.cat([labels, torch.tensor([math.nan])]))
    assert [(round(x, 2), y) for x, y, _ in points] == [(0.25, 0.5), (0.85, 1.0)]


def test_kendall_counts_pairs_in_the_same_order_without_ties() -> None:
    order = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert kendall(order, order * 10) == pytest.approx(1.0)
    assert kendall(order, -order) == pytest.approx(-1.0)
    assert kendall(order, torch.tensor([1.0, 3.0, 2.0, 4.0])) == pytest.approx(4 / 6)
    assert kendall(order, torch.tensor([1.0, 1.0, 2.0, 2.0])) == pytest.approx(4 / math.sqrt(6 * 4))
    assert math.isnan(kendall(order, torch.ones(4)))
