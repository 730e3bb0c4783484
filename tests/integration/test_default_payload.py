"""The default adapter's bytes: (1 - gamma) of the dense ones to 1 %, for every rate the default budget admits."""

import numpy as np
import pytest

from adapter import sample_mask
from adapter.pack import adapter_bytes
from conf.compose import compose_config
from conf.convert import lora_settings, model_settings
from tasks.models.build import describe_model
from tasks.settings import ModelError


def test_shipped_bytes_are_the_planned_share_to_one_percent() -> None:
    config = compose_config("")
    try:
        spec = describe_model(model_settings(config), lora_settings(config), 12).spec
    except ModelError as error:
        pytest.skip(str(error))
    for rate in np.linspace(0, config.budget.max_dropout_rate, 141):
        shipped = adapter_bytes(spec, sample_mask(spec, 1, float(rate)), "fp32") / 4
        planned = (1 - rate) * spec.droppable_parameters
        assert 0.99 * planned <= shipped <= planned + 1e-6
