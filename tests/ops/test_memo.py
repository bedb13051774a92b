"""Values remembered for tensors: by identity and contents, and forgotten with the tensor."""

import gc

import torch

from pyro_mixtures.ops.memo import TensorMemo


def test_values_belong_to_one_tensor_and_its_contents():
    memo, x = TensorMemo(), torch.ones(3)
    equal = x.clone()
    memo.set(x, "value")
    assert memo.get(x) == "value"
    assert memo.get(equal) is None
    assert vars(x) == {}
    x.add_(1)
    assert memo.get(x) is None
    memo.set(x, "new")
    assert memo.get(x) == "new"


def test_values_of_collected_tensors_are_forgotten():
    memo = TensorMemo()
    for _ in range(50):
        memo.set(torch.ones(3), "value")
    gc.collect()
    assert len(memo) == 0
    x = torch.ones(3)
    assert memo.get(x) is None


def test_tensors_without_a_version_are_not_remembered():
    memo = TensorMemo()
    with torch.inference_mode():
        x = torch.ones(3)
    memo.set(x, "value")
    assert memo.get(x) is None
    assert len(memo) == 0
