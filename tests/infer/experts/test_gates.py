"""Gates against scikit-learn."""

import numpy as np
import pyro
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from pyro_mixtures.errors import DataError, OptionError, PartitionError
from pyro_mixtures.infer.experts.gates import fit_gate
from tests.infer.experts.programs import DTYPES, labeled, randn

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("penalty", [1.0, 0.05])
@pytest.mark.parametrize("clusters", [3, 6])
def test_gate_is_multinomial_logistic_regression(clusters, penalty, dtype):
    x, labels = labeled(250, 4, clusters)
    gate, new = fit_gate(x.to(dtype), labels, clusters, penalty=penalty), 1.5 * x[:40]
    scaler = StandardScaler().fit(x.numpy())
    sklearn = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=20_000).fit(
        scaler.transform(x), labels.numpy()
    )
    expected = sklearn.predict_log_proba(scaler.transform(new))
    result = gate.log_prob(new.to(dtype))
    assert result.dtype == dtype
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-4)
    np.testing.assert_array_equal(gate(new.to(dtype)).numpy(), expected.argmax(-1))
    assert torch.equal(gate(new.to(dtype)), gate.assign(new.to(dtype)))


def test_two_clusters_have_half_the_penalty_of_one_weight_vector():
    x, labels = labeled(200, 3, 2)
    gate = fit_gate(x, labels, 2, penalty=0.5)
    z = StandardScaler().fit_transform(x.numpy())
    sklearn = LogisticRegression(C=2 / 0.5, tol=1e-10, max_iter=20_000).fit(z, labels.numpy())
    np.testing.assert_allclose(gate.log_prob(x).numpy(), sklearn.predict_log_proba(z), atol=1e-4)


def test_gate_looks_at_rows_in_chunks(monkeypatch):
    x, labels = labeled(100, 3, 4)
    whole = fit_gate(x, labels, 4).log_prob(x)
    monkeypatch.setattr("pyro_mixtures.infer.experts.gates._NUMBERS", 64)
    monkeypatch.setattr("pyro_mixtures.infer.experts.gates._ROWS", 7)
    torch.testing.assert_close(fit_gate(x, labels, 4).log_prob(x), whole, atol=1e-4, rtol=1e-4)


def test_clusters_without_rows_are_impossible():
    x, labels = labeled(120, 3, 3)
    gate = fit_gate(x, torch.tensor([0, 2, 5])[labels], 7)
    log_prob = gate.log_prob(x)
    assert (log_prob[:, [1, 3, 4, 6]] == -torch.inf).all()
    torch.testing.assert_close(log_prob[:, [0, 2, 5]], fit_gate(x, labels, 3).log_prob(x))


def test_a_single_cluster_with_rows_is_certain():
    gate = fit_gate(randn(5, 2), torch.full((5,), 1), 3)
    assert gate.log_prob(randn(4, 2, seed=1)).exp().tolist() == [[0.0, 1.0, 0.0]] * 4


def test_one_row_and_constant_features():
    assert fit_gate(randn(1, 3), torch.tensor([2]), 4)(randn(6, 3, seed=1)).tolist() == [2] * 6
    x, labels = labeled(80, 3, 3)
    constant = torch.cat([x, torch.full((80, 1), 0.1, dtype=x.dtype)], -1)
    expected = fit_gate(x, labels, 3).log_prob(x)
    torch.testing.assert_close(
        fit_gate(constant, labels, 3).log_prob(constant), expected, atol=1e-4, rtol=1e-4
    )


def test_integer_rows_and_rows_of_several_dimensions():
    x = torch.randint(
        0, 256, (60, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels = (x[:, 0, 0] > 128).long() + 2 * (x[:, 1, 2] > 128).long()
    gate = fit_gate(x, labels, 4, penalty=0.01)
    assert (gate(x) == labels).double().mean() > 0.9
    torch.testing.assert_close(
        gate.log_prob(x),
        fit_gate(x.flatten(1).float(), labels, 4, penalty=0.01).log_prob(x.flatten(1).float()),
    )


def test_a_gate_is_a_module_that_can_be_saved():
    x, labels = labeled(60, 2, 3)
    gate = fit_gate(x, labels, 3)
    other = fit_gate(x + 1, labels.flip(0), 3)
    other.load_state_dict(gate.state_dict())
    assert torch.equal(other.log_prob(x), gate.log_prob(x))
    assert not gate.log_prob(x).requires_grad


def test_a_module_learns_nonlinear_boundaries():
    x = randn(400, 2, dtype=torch.float32)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    pyro.set_rng_seed(1)
    module = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.0), nn.Linear(16, 3))
    gate = fit_gate(x, labels, 3, module=module, epochs=40, batch_size=50, penalty=1e-3)
    assert gate.module is module
    assert not module.training
    assert (gate(x) == labels).double().mean() > 0.95
    assert (gate.log_prob(x)[:, 2] == -torch.inf).all()
    assert (fit_gate(x, labels, 3)(x) == labels).double().mean() < 0.8


def test_a_linear_module_reaches_the_convex_solution():
    x, labels = labeled(150, 2, 3)
    module = nn.Linear(2, 3, bias=False, dtype=torch.float64)
    gate = fit_gate(
        x, labels, 3, module=module, epochs=600, batch_size=150, learning_rate=0.05, penalty=4.0
    )
    z = StandardScaler().fit_transform(x.numpy())
    sklearn = LogisticRegression(C=0.25, tol=1e-10, max_iter=9999, fit_intercept=False).fit(
        z, labels.numpy()
    )
    np.testing.assert_allclose(gate.log_prob(x).numpy(), sklearn.predict_log_proba(z), atol=1e-4)


def test_training_is_reproducible():
    x, labels = labeled(90, 3, 3)

    def fitted(seed):
        pyro.set_rng_seed(seed)
        return fit_gate(x, labels, 3, module=nn.Linear(3, 3), epochs=3, batch_size=16).log_prob(x)

    assert torch.equal(fitted(1), fitted(1))
    assert not torch.equal(fitted(1), fitted(2))


def test_gate_refuses_invalid_input():
    x, labels = labeled(20, 3, 3)
    with pytest.raises(PartitionError, match="-1 marks rows"):
        fit_gate(x, labels - 1, 3)
    with pytest.raises(PartitionError, match=r"not in \[0, 2\)"):
        fit_gate(x, labels.clamp_min(2), 2)
    with pytest.raises(PartitionError, match="integers"):
        fit_gate(x, labels.double(), 3)
    with pytest.raises(PartitionError, match=r"integers of shape \(20,\)"):
        fit_gate(x, labels[:-1], 3)
    with pytest.raises(OptionError, match="penalty"):
        fit_gate(x, labels, 3, penalty=0.0)
    with pytest.raises(OptionError, match="components"):
        fit_gate(x, labels, 0)
    with pytest.raises(DataError, match="row 4"):
        fit_gate(
            x.index_put(
                (torch.tensor([4]), torch.tensor([1])), torch.tensor(torch.nan, dtype=x.dtype)
            ),
            labels,
            3,
        )
    with pytest.raises(DataError, match="N >= 1"):
        fit_gate(x[:0], labels[:0], 3)
    with pytest.raises(DataError, match="must have"):
        fit_gate(x, labels, 3).log_prob(x[:, :2])
    with pytest.raises(OptionError, match="one logit per cluster"):
        fit_gate(x, labels, 3, module=nn.Linear(3, 2))
    with pytest.raises(OptionError, match="no trainable parameters"):
        fit_gate(x, labels, 3, module=nn.Identity())
    with pytest.raises(OptionError, match="epochs=0"):
        fit_gate(x, labels, 3, module=nn.Linear(3, 3), epochs=0)


def test_a_gate_that_does_not_converge_warns(monkeypatch):
    x, labels = labeled(50, 3, 3)
    monkeypatch.setattr("pyro_mixtures.infer.experts.gates._STEPS", 1)
    with pytest.warns(RuntimeWarning, match="before convergence"):
        fit_gate(x, labels, 3)
