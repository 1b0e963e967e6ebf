"""Classification probes against scikit-learn, and exact properties."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastequi.evaluate.class_probes import (
    _logistic,
    accuracy,
    conv_classes,
    few_labels,
    fit_logistic,
    interval,
    knn_classes,
    linear_classes,
    linear_probe,
    nonlinear_classes,
)


def blobs(n, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    centers = torch.tensor([[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
    return centers[y] + spread * torch.randn(n, 4, generator=generator), y


def test_logistic_regression_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = blobs(300, 0)
    weight, bias = _logistic(x, y, 3, 1e-2, steps=4000, lr=1e-2)
    theirs = linear_model.LogisticRegression(C=1 / (1e-2 * len(x)), max_iter=1000, tol=1e-8)
    theirs.fit(x.double().numpy(), y.numpy())

    def objective(weight, bias):
        fit = F.cross_entropy(x.double() @ weight.double() + bias.double(), y)
        return (fit + 0.005 * weight.double().square().sum()).item()

    best = objective(torch.from_numpy(theirs.coef_.T.copy()), torch.from_numpy(theirs.intercept_))
    assert best <= objective(weight, bias) <= best + 5e-5
    ours = (x @ weight + bias).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(x.numpy()), atol=2e-2)


def test_lbfgs_reaches_scikit_learns_optimum_and_its_predictions():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = blobs(300, 0)
    for penalty in (1e-1, 1e-3):
        weight, bias = fit_logistic(x, y, 3, penalty)
        theirs = linear_model.LogisticRegression(C=1 / (penalty * len(x)), max_iter=1000, tol=1e-8)
        theirs.fit(x.double().numpy(), y.numpy())
        ours = (x @ weight + bias).softmax(1).numpy()
        np.testing.assert_allclose(ours, theirs.predict_proba(x.numpy()), atol=2e-3)
    mean, scale = x.mean(0), x.std(0)
    x_test, _ = blobs(100, 1)
    theirs.fit(((x - mean) / scale).double().numpy(), y.numpy())
    ((pred, chosen),) = linear_probe(x, y, x_test, penalties=[1e-3])
    assert chosen == 1e-3
    expected = theirs.predict(((x_test - mean) / scale).double().numpy())
    assert (pred.numpy() == expected).mean() >= 0.99


def test_the_linear_probe_chooses_its_penalty_on_labels_it_was_not_fitted_on():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1400, 100, generator=generator)
    y = (x[:, :20].sum(1) + 4 * torch.randn(1400, generator=generator) > 0).long()
    x, y, x_test, y_test = x[:150], y[:150], x[150:], y[150:]
    both = linear_probe(x, y, x_test, seeds=(0, 1))
    assert all(penalty >= 1e-2 for _, penalty in both)
    ((weak, _),) = linear_probe(x, y, x_test, penalties=[1e-5])
    assert accuracy(both[0][0], y_test) > accuracy(weak, y_test)
    order = y.argsort()  # a set sorted by class: the choosing fifth still holds both
    ((sorted_, _),) = linear_probe(x[order], y[order], x_test)
    assert accuracy(sorted_, y_test) > accuracy(weak, y_test)


@pytest.mark.parametrize("chunk", [7, 512])
def test_neighbours_vote_as_scikit_learns(chunk):
    neighbors = pytest.importorskip("sklearn.neighbors")
    x, y = blobs(200, 0)
    x_test, y_test = blobs(60, 1)
    ours = knn_classes(x, y, x_test, (1, 5, 200), temperature=0.07, chunk=chunk)
    for k, pred in ours.items():
        model = neighbors.KNeighborsClassifier(
            k, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07)
        )
        expected = model.fit(x.double().numpy(), y.numpy()).predict(x_test.double().numpy())
        assert pred.tolist() == expected.tolist()
    assert accuracy(ours[5], y_test) > 0.6
    for ks in ((), (0,), (5, 201)):
        with pytest.raises(ValueError, match=r"ks: expected 1 \.\. 200"):
            knn_classes(x, y, x_test, ks)


def test_probes_predict_what_can_be_predicted():
    x, y = blobs(600, 1, 0.3)
    x_test, y_test = blobs(200, 2, 0.3)
    for probe in (linear_classes, nonlinear_classes):
        assert accuracy(probe(x, y, x_test), y_test) > 0.97
    ring = torch.randn(800, 2, generator=torch.Generator().manual_seed(3))
    inside = (ring.norm(dim=1) > 1.1).long()
    assert accuracy(linear_classes(ring[:600], inside[:600], ring[600:]), inside[600:]) < 0.7
    assert accuracy(nonlinear_classes(ring[:600], inside[:600], ring[600:]), inside[600:]) > 0.9


def test_probes_leave_the_generator_alone_and_repeat():
    x, y = blobs(100, 4)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = nonlinear_classes(x, y, x, steps=20)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(nonlinear_classes(x, y, x, steps=20), first)


def test_few_labels_are_balanced():
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 5)
    pick = few_labels(y, 5)
    assert y[pick].bincount().tolist() == [5, 5, 5]
    assert len(pick.unique()) == 15
    with pytest.raises(ValueError, match="at most 5, as class 2 has, got 6"):
        few_labels(y, 6)


def test_interval_is_wilsons():
    low, high = interval(0.9, 100)
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert interval(1.0, 10)[1] == pytest.approx(1.0)
    for n in (5, 10, 20, 500):  # rounding does not leave 0..1
        assert interval(0.0, n)[0] == 0.0
        assert interval(1.0, n)[1] <= 1.0


@pytest.mark.slow  # trains convolutions; test_rotnet's evaluation runs the probe
def test_the_convolutional_probe_sees_where_things_lie():
    """The class is whether a spot has its twin beside or below it: no mean of pixels tells."""
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(400, 2, 6, 6, generator=generator)
    y = torch.randint(2, (400,), generator=generator)
    at = torch.randint(0, 5, (400, 2), generator=generator)
    for image, label, (row, column) in zip(x, y.tolist(), at.tolist(), strict=True):
        image[:, row, column] += 2
        image[:, row + label, column + 1 - label] += 2
    state = torch.get_rng_state()
    pred = conv_classes(x[:300], y[:300], x[300:], steps=60)
    assert torch.equal(torch.get_rng_state(), state)
    assert accuracy(pred, y[300:]) > 0.95
    assert torch.equal(pred, conv_classes(x[:300], y[:300], x[300:], steps=60))
    pooled = x.mean((2, 3))
    assert accuracy(nonlinear_classes(pooled[:300], y[:300], pooled[300:]), y[300:]) < 0.7
