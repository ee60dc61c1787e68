"""A model whose weights stay in 16 bits gives the numbers of the float32 model."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from zoo.zoo import zoo_model

from hub.models.widened import is_narrow, widened


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "mamba2", "gpt2"])
def test_narrow_weights_give_the_numbers_of_wide_ones_and_stay_as_they_are(tmp_path, name):
    folder = zoo_model(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    model.save_pretrained(tmp_path)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(2, 50)[None]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad(), widened(model):
        found = model(input_ids=ids, use_cache=False).logits
    with torch.no_grad():
        assert torch.equal(found, wide(input_ids=ids, use_cache=False).logits)
        assert not torch.equal(found, model(input_ids=ids, use_cache=False).logits.float())  # the hooks are gone
    assert is_narrow(model)
    assert not is_narrow(wide)
    after = model.state_dict()
    assert all(after[key].dtype == tensor.dtype and torch.equal(after[key], tensor) for key, tensor in before.items())


def test_weights_are_narrow_again_after_an_error():
    model = AutoModelForCausalLM.from_pretrained(zoo_model("llama"), dtype=torch.bfloat16)
    with widened(model), pytest.raises(IndexError):
        model(input_ids=torch.tensor([[10**6]]))
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
