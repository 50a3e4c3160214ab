"""The giant language models have Lingvo's numbers of weights, by their shapes alone."""

import pytest

from raylingvo import registry
from raylingvo.training.state import Model, num_params

DENSE = {
    "DenseLm8B2x2": 8_852_168_704,
    "DenseLm8B2x2Decode": 8_852_168_704,
    "DenseLm128B8x8": 137_702_416_384,
    "DenseLm128B16x16": 137_702_416_384,
    "DenseLm128B32x32": 137_702_416_384,
    "DenseLm1T16x16": 1_100_041_175_040,
    "DenseLm175B32x32": 174_366_928_896,
    "DenseLm175B32x32DP": 174_366_928_896,
    "DenseLm175B1K": 174_366_928_896,
    "DenseLm175B8x8Decode2D": 174_366_928_896,
    "DenseLM13B32x32": 12_757_652_480,
    "DenseLm12kWide41BAdam16x16": 43_905_527_808,
    "DenseLm12kWide41BAdam8x8": 43_905_527_808,
    "DenseLm12kWide162BAdam16x16": 174_366_928_896,
    "DenseLm12kWide162BAdamBS25616x16": 174_366_928_896,
    "DenseLm12kWide162BAdam32x32": 174_366_928_896,
}
BERT = {
    "MLPerfTrainBertDense2B": 2_020_917_248,
    "MLPerfBertDense1T": 963_139_092_480,
    "MLPerfBertDense1TWider": 894_672_601_088,
    "MLPerfBertDense175B": 203_641_073_664,
    "MLPerfBertDense500B": 481_815_347_200,
    "MLPerfBertDense500B2K": 481_815_347_200,
    "MLPerfBertDense13B32x32": 14_899_368_960,
}


@pytest.mark.parametrize(
    ("name", "number"),
    [(f"lm.synthetic_packed_input.{name}", number) for name, number in DENSE.items()]
    + [(f"lm.wiki_bert.{name}", number) for name, number in BERT.items()],
)
def test_the_number_of_weights(name, number):
    assert num_params(Model(registry.get(name).task).abstract) == number
