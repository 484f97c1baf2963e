"""Which optimizers take the fused kernel: only where a step with it has been seen to work."""

import pytest
import torch

from Training.optimizer import make_optimizer


def weights():
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    return [weight]


@pytest.mark.parametrize(("name", "fused"), [("adagrad", True), ("adam", True), ("adamw", True), ("sgd", None)])
def test_what_can_be_fused_is(name, fused):
    assert make_optimizer(name, weights()).param_groups[0]["fused"] is fused


@pytest.mark.parametrize("name", ["adagrad", "sgd", "rmsprop", "adam", "adamw"])
def test_a_kernel_that_the_first_step_refuses_is_not_used(name, monkeypatch):
    """As Adagrad does on CUDA in torch 2.11: it is made with the option and raises in its first step."""

    def refusing(step):
        def refuse(self, *args):
            if self.param_groups[0].get("fused"):
                raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of ...")
            return step(self, *args)

        return refuse

    # AdamW is an Adam, but has a step of its own as soon as one was made: torch puts a hook before each class's
    for optimizer in (torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW):
        monkeypatch.setattr(optimizer, "step", refusing(optimizer.step))
    parameters = weights()
    optimizer = make_optimizer(name, parameters)
    optimizer.step()
    assert not optimizer.param_groups[0].get("fused") and (parameters[0] < 1).all()
