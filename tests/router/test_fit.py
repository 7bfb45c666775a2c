import pytest
import torch

from router.fit import Observations, auroc, fit, probabilities, threshold_for


def test_auroc_of_perfect_inverted_and_useless_scores() -> None:
    labels = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert auroc(torch.tensor([0.1, 0.2, 0.3, 0.4]), labels) == 1.0
    assert auroc(torch.tensor([0.4, 0.3, 0.2, 0.1]), labels) == 0.0
    assert auroc(torch.tensor([0.1, 0.4, 0.2, 0.3]), labels) == 0.5


def test_threshold_spends_the_allowed_loss_and_no_more() -> None:
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    correct = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert threshold_for(scores, correct, max_loss=0.0, explicit_accuracy=1.0) == pytest.approx(0.8)
    assert threshold_for(scores, correct, max_loss=0.25, explicit_accuracy=1.0) == pytest.approx(0.7)
    assert threshold_for(scores, torch.zeros(4), max_loss=0.1, explicit_accuracy=1.0) > 1


def test_a_probe_learns_what_the_states_show() -> None:
    torch.manual_seed(0)
    states = torch.randn(2000, 8)
    solvable = (states[:, 0] * states[:, 1] > 0).float()  # not linear: the reason for two layers
    observed = Observations({"last": states}, {"direct": solvable}, torch.ones(2000), torch.ones(2000))
    fresh = torch.randn(500, 8)
    truth = (fresh[:, 0] * fresh[:, 1] > 0).float()
    probe = fit(observed, ("last",))
    held_out = Observations({"last": fresh}, {"direct": truth}, torch.ones(500), torch.ones(500))
    assert auroc(probabilities(probe, held_out, "direct"), truth) > 0.9
