"""Linear regressions: errors."""

import pytest
import torch

from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions
from tests.distributions.regression.linear_rows import COMPONENTS, build, mixture, rows_of

pytestmark = pytest.mark.usefixtures("on_one_thread")


def test_arguments_that_do_not_fit_are_refused():
    x, y = rows_of(None)
    weight, bias, scale = (t.detach() for t in build(x).arguments.values())
    with pytest.raises(OptionError, match="for M outputs"):
        LinearRegressions(x, weight, bias[:2], scale)
    with pytest.raises(OptionError, match="3 covariates"):
        LinearRegressions(x, weight[:, :2], bias, scale)
    with pytest.raises(OptionError, match="ridge=-1"):
        LinearRegressions(x, weight, bias, scale, ridge=-1.0)
    with pytest.raises(DataError, match=r"\(B, P\)"):
        LinearRegressions(x[0], weight, bias, scale)
    with pytest.raises(ValueError, match="scale"):
        LinearRegressions(x, weight, bias, -scale, validate_args=True)
    with pytest.raises(DataError, match="59 outcomes for 60 rows"):
        build(x)[torch.zeros(59, dtype=torch.int64)].log_prob(y[:59])
    with pytest.raises(DataError, match="float32"):
        LinearRegressions(x, weight.float(), bias.float(), scale.float())[
            torch.zeros(60).long()
        ].log_prob(y)


@pytest.mark.parametrize("call", ["log_prob", "sample", "rsample", "mean"])
def test_components_that_no_rows_were_selected_of_are_refused(call):
    """As many rows as components would otherwise be matched one to one."""
    x, y = rows_of(None, rows=COMPONENTS)
    family = build(x)
    with pytest.raises(DataError, match=r"family\[z\]"):
        family.log_prob(y) if call == "log_prob" else family.mean if call == "mean" else getattr(
            family, call
        )()


def test_impossible_options_of_the_model_are_refused():
    for options in ({"outputs": 0}, {"ridge": -0.1}, {"scale": 0.0}):
        with pytest.raises(OptionError, match=next(iter(options))):
            MixtureOfRegressions(components=2, features=1, **options)
    model = mixture()
    with pytest.raises(DataError, match="59 outcomes"):
        model(rows_of(None)[0], rows_of(None)[1][:59])


def test_weight_without_bias_has_no_closed_form():
    model, (x, y) = mixture(), rows_of(None)
    with pytest.raises(ClosedFormError, match="together"):
        EM(model, FullPartition(model, components=COMPONENTS), freeze=["bias"], empty="keep").step(
            x, y
        )
