"""The trainable layer beside PEFT's formula, and its shortcut for few rows beside itself."""

import pytest
import torch
from torch import nn

from assistant.arithmetic import turned_linear
from finetune.lora import FEW_ROWS, LoraLinear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_turned_product_is_the_product(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40, bias=bias).to(dtype), torch.randn(7, 24).to(dtype)
    found = turned_linear(x, layer.weight, layer.bias)
    assert found.shape == (7, 40) and found.dtype == dtype
    torch.testing.assert_close(found, layer(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (FEW_ROWS, 1), (1, FEW_ROWS), (FEW_ROWS, 2)])
def test_few_rows_have_the_values_of_many(bias: bool, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = LoraLinear(nn.Linear(24, 40, bias=bias), rank=4, alpha=8, generator=generator)
    nn.init.normal_(layer.b, generator=generator)
    x = torch.randn(*shape, 24, generator=generator)
    expected = layer.base(x) + 2 * (x @ layer.a.T) @ layer.b.T
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


def test_few_rows_in_bf16_are_computed_as_many_are() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = LoraLinear(nn.Linear(24, 40).to(torch.bfloat16), rank=4, alpha=8, generator=generator)
    nn.init.normal_(layer.b, generator=generator)
    x = torch.randn(5, 24, generator=generator).to(torch.bfloat16)
    with torch.no_grad():
        found = layer(x)
    assert torch.equal(found, layer(x))
