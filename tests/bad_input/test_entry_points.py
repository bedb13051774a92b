"""Every function that takes rows reads arrays and frames alike, and rounds nothing."""

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from pyro_mixtures.diagnostics import (
    partition_information,
    partition_report,
    report,
    to_arviz,
)
from pyro_mixtures.errors import DataError
from pyro_mixtures.guides import FullPartition, HardPartition
from pyro_mixtures.infer import (
    EM,
    assign,
    best_of,
    bootstrap,
    conditional,
    criteria,
    fit,
    fit_restarts,
    grow,
    log_evidence,
    reconstruct,
    responsibilities,
    standard_errors,
)
from pyro_mixtures.init import seed_rows, start_labels
from pyro_mixtures.models import GaussianMixture, KMeans

N, D = 40, 2


def rows():
    """Whole numbers in two clusters, which all dtypes hold."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 20, (N, D), generator=generator)
    x[: N // 2] += 60
    return x.numpy()


def masked(x):
    return np.ma.masked_array(x, mask=np.arange(x.size).reshape(x.shape) == 5)


def nullable_frame(x):
    return pd.DataFrame(x, columns=["a", "b"]).convert_dtypes()


FORMS = {
    "int64": lambda x: x,
    "big-endian": lambda x: x.astype(">i4"),
    "nothing masked": np.ma.masked_array,
    "mixed frame": lambda x: nullable_frame(x).astype({"a": "float64", "b": "category"}),
}
BAD = {
    "masked": (masked, "1 masked entries, the first at"),
    "strings": (
        lambda x: pd.DataFrame({"a": x[:, 0], "b": x[:, 1].astype(str)}),
        r"x\['b'\] holds .*cat\.codes",
    ),
}


def model_of():
    pyro.clear_param_store()
    model = GaussianMixture(components=2, features=D).double()
    model.start_at(seed_rows(rows(), 2, generator=torch.Generator().manual_seed(0)))
    return model


def em_of():
    model = model_of()
    return EM(model, FullPartition(model, components=2))


def hard_em(restarts=None):
    pyro.clear_param_store()
    model = KMeans(components=2, features=D).double()
    return EM(model, HardPartition(model, components=2))


def growing(components):
    model = GaussianMixture(components=components, features=D).double()
    return EM(model, FullPartition(model, components=components))


def start(model):
    model.start_at(seed_rows(rows(), 2, generator=generator()))


def fitted():
    return fit(em_of(), rows(), epochs=3, progress=False)


def stepped(use):
    em = em_of()
    use(em)
    return em.model.loc.detach()


def accumulated(x):
    em = em_of()
    em.accumulate(x)
    em.maximize()
    return em.model.loc.detach()


def generator():
    return torch.Generator().manual_seed(0)


def report_of(x, folder):
    return report(fitted(), folder / "report.html", x, generator=generator()).component_entropy


USES = {
    "step": lambda x, _: stepped(lambda em: em.step(x)),
    "accumulate": lambda x, _: accumulated(x),
    "evaluate_loss": lambda x, _: em_of().evaluate_loss(x),
    "fit": lambda x, _: fit(em_of(), x, progress=False).elbo,
    "minibatches": lambda x, _: fit(em_of(), x, batch_size=7, progress=False).elbo,
    "log_evidence": lambda x, _: log_evidence(model_of(), x),
    "responsibilities": lambda x, _: responsibilities(model_of(), x).probs,
    "assign": lambda x, _: assign(model_of(), x),
    "reconstruct": lambda x, _: reconstruct(model_of(), x, noise=0.1),
    "conditional": lambda x, _: conditional(model_of(), x).double(),
    "criteria": lambda x, _: criteria(model_of(), x).bic,
    "standard_errors": lambda x, _: standard_errors(fitted().model, x)["loc"],
    "bootstrap": lambda x, _: bootstrap(fitted(), x, draws=2, progress=False).elbos,
    "best_of": lambda x, _: best_of(em_of, x, starts=[start] * 2, progress=False).best.elbo,
    "grow": lambda x, _: grow(growing, x, components=[1, 2], progress=False)[-1].elbo,
    "fit_restarts": lambda x, _: fit_restarts(hard_em, x, starts=2, progress=False).objectives,
    "seed_rows": lambda x, _: seed_rows(x, 2, generator=generator()).loc.double(),
    "start_labels": lambda x, _: start_labels(x, 2, method="kmeans++", generator=generator()),
    "to_arviz": lambda x, _: to_arviz(fitted(), x)["posterior"]["loc"].values,
    "partition_report": lambda x, _: (
        partition_report(fitted(), x, generator=generator()).component_entropy
    ),
    "report": report_of,
    "information": lambda x, _: (
        partition_information(np.arange(N) // (N // 2), x, generator=generator()).variables[0].nats
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("use", USES)
def test_all_forms_of_the_same_rows_give_the_same_result(use, form, tmp_path):
    pyro.set_rng_seed(0)
    expected = USES[use](torch.as_tensor(rows()).double(), tmp_path)
    pyro.set_rng_seed(0)
    actual = USES[use](FORMS[form](rows()), tmp_path)
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=1e-6)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("use", USES)
def test_rows_that_cannot_be_read_are_refused_with_a_remedy(use, bad, tmp_path):
    make, message = BAD[bad]
    with pytest.raises(DataError, match=message):
        USES[use](make(rows()), tmp_path)
