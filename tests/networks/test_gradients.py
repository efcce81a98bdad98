"""Gradients by every means that torch has: of attentions, by sample, forward, in float64, and in graphs."""

from __future__ import annotations

import pytest
import torch
from support.models import CONFIGS, batch_of, layers_of, small_model
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

ESMS = [name for name in CONFIGS if name != "carp"]


# ---- of attentions


def padded_by_hand(network):
    """Return a batch with padding at both ends, and which of its pairs of positions are tokens."""
    batch = batch_of(network, side="left")
    batch["input_ids"][0, -2:] = 1
    batch["attention_mask"][0, -2:] = 0
    inside = batch["attention_mask"].bool()
    return batch, inside[:, None, :, None] & inside[:, None, None, :]


@pytest.mark.parametrize("is_padded", [True, False])
@pytest.mark.parametrize("network", ESMS)
def test_attentions_have_the_gradient_of_what_depends_on_them(network, is_padded):
    model = small_model(network)
    model.set_attn_implementation("eager")
    batch, both = padded_by_hand(network)
    if not is_padded:
        batch, both = {"input_ids": torch.randint(4, 20, (2, 9))}, torch.ones(2, 1, 9, 9, dtype=torch.bool)
    output = model(**batch, output_attentions=True, output_hidden_states=True)
    # what is shown changes nothing of the output, to the bit
    assert torch.equal(output.logits, model(**batch).logits)
    shown = (*output.attentions, *output.hidden_states)
    for each in shown:
        each.retain_grad()
    inside = both[:, 0].any(-1)
    loss = output.logits[inside].pow(2).sum()
    loss.backward()
    assert all(each.grad.abs().max() > 0 for each in shown)
    # a step along the gradient, made where the weights are used, changes the loss by as much as it says
    attentions, number = output.attentions[1], 1
    step = 1e-4 * attentions.grad / attentions.grad.norm()
    value = layers_of(model)[number].self_attn.v_proj(layers_of(model)[number].self_attn_layer_norm(
        output.hidden_states[number])).unflatten(-1, (4, -1)).transpose(1, 2)  # fmt: skip

    def add(module, args):
        return (args[0] + torch.matmul(step * both, value).transpose(1, 2).flatten(2),)

    hook = layers_of(model)[number].self_attn.out_proj.register_forward_pre_hook(add)
    moved = model.double()(**batch).logits[inside].pow(2).sum()
    hook.remove()
    before = model(**batch).logits[inside].pow(2).sum()
    torch.testing.assert_close((moved - before).float(), (step * attentions.grad).sum(), rtol=0.02, atol=0)
    assert not attentions.detach()[~both.expand_as(attentions)].any()


# ---- torch.func


def losses_of(network, head):
    """Return a network, a function of its parameters and of one sample, and three samples."""
    model = small_model(network, head)
    if network != "carp":
        model.set_attn_implementation("eager")  # sdpa has no forward derivative, nor one of a derivative, on a CPU
    batch = batch_of(network)
    labels = torch.tensor([0, 1, 1]) if head == "ForSequenceClassification" else batch["input_ids"].clamp(max=1)

    def loss(parameters, ids, mask, label):
        given = {"attention_mask": mask.unsqueeze(0), **({} if head == "Model" else {"labels": label.unsqueeze(0)})}
        output = functional_call(model, parameters, (ids.unsqueeze(0),), given)
        return output.last_hidden_state.pow(2).mean() if head == "Model" else output.loss

    return model, loss, (batch["input_ids"], batch["attention_mask"], labels)


def test_gradients_of_each_sample(network, head):
    model, loss, samples = losses_of(network, head)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, *samples)
    for row in range(3):
        model.zero_grad()
        loss(dict(model.named_parameters()), *(each[row] for each in samples)).backward()
        for name, parameter in model.named_parameters():
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(gradients[name][row], wanted, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_vectorised_network_gives_the_same(network, attention, context):
    model, batch = small_model(network), batch_of(network)
    if network != "carp":
        model.set_attn_implementation(attention)

    def logits(ids, mask):
        return model(ids.unsqueeze(0), mask.unsqueeze(0)).logits.squeeze(0)

    with context():
        together = vmap(logits)(batch["input_ids"], batch["attention_mask"])
        alone = torch.stack(
            [logits(*each) for each in zip(*map(batch.get, ("input_ids", "attention_mask")), strict=True)]
        )
    inside = batch["attention_mask"].bool()
    torch.testing.assert_close(together[inside], alone[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["input_ids", "position_ids"])
def test_an_id_that_is_none_is_an_error_under_a_transform_too(name):
    model = small_model("esm1b")
    ids = {"input_ids": torch.full((2, 1, 4), 5), "position_ids": torch.full((2, 1, 4), 5)}
    ids[name][1] = 5000
    with pytest.raises(IndexError):
        vmap(lambda i, p: model(i, position_ids=p).logits)(ids["input_ids"], ids["position_ids"])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_derivatives_forward_and_back_are_one(network):
    model, batch = small_model(network), batch_of(network)
    if network != "carp":
        model.set_attn_implementation("eager")
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    direction = torch.randn_like(embeds)

    def total(x):
        return model(inputs_embeds=x, attention_mask=batch["attention_mask"]).logits.logsumexp(-1).sum()

    with torch.no_grad():
        forward = jvp(total, (embeds,), (direction,))[1]
    torch.testing.assert_close(forward, (jacrev(total)(embeds) * direction).sum(), rtol=1e-3, atol=1e-3)


# ---- float64


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_float64_is_exact(network, attention):
    """Against finite differences: what rounds to float32 on the way is off by more than they allow."""
    model = small_model(network, num_hidden_layers=1).double()
    if network != "carp":
        model.set_attn_implementation(attention)
    ids = batch_of(network)["input_ids"][:2, :7].clone()
    ids[0, 3] = model.config.mask_token_id
    ids[1, 5:] = model.config.pad_token_id
    embedding = model.get_input_embeddings().weight

    def loss(scale):
        output = functional_call(model, {**dict(model.named_parameters()), **names}, (ids,), {"labels": ids})
        return output.loss * scale

    names = {}
    name = next(name for name, parameter in model.named_parameters() if parameter is embedding)
    direction = torch.randn_like(embedding)
    direction[[model.config.pad_token_id, model.config.mask_token_id]] = 0  # which torch gives no gradient

    def along(step):
        names[name] = embedding + step * direction
        return loss(1.0)

    assert torch.autograd.gradcheck(along, (torch.zeros((), dtype=torch.float64, requires_grad=True),), atol=1e-8)


def test_token_dropout_scales_in_the_type_of_the_network():
    """One of seven tokens is masked, and no float32 is the scale that makes up for it, 0.88 / (1 - 1 / 7)."""
    model = small_model("esm2", "Model").double()
    ids = torch.tensor([[5, 6, 32, 7, 8, 9, 10]])
    state = model(ids, output_hidden_states=True).hidden_states[0]
    exact = model.embed_tokens.weight[ids] * (0.88 / (1 - 1 / 7))
    kept = ids[0] != 32
    torch.testing.assert_close(state[0, kept], exact[0, kept], rtol=1e-15, atol=0)


def test_rotary_angles_of_a_float64_network_do_not_depend_on_how_it_was_made(tmp_path):
    model = small_model("esm2", "Model")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    ids, far = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 2000, 100_003]])
    one, other = (each(ids, position_ids=far).last_hidden_state for each in (loaded, model.double()))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    # only differences matter, which a rounded angle would not keep
    torch.testing.assert_close(loaded(ids, position_ids=far + 7).last_hidden_state, one, rtol=0, atol=1e-9)


# ---- graphs


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore:There is a perf")
def test_ids_are_not_looked_at_while_a_graph_is_made(network, monkeypatch):
    model, ids = small_model(network).requires_grad_(False), torch.full((1, 6), 5)
    monkeypatch.setattr(torch, "aminmax", lambda *_: pytest.fail("looked at"))
    for make in (
        lambda: torch.jit.trace(lambda x: model(x).logits, (ids,), check_trace=False),
        lambda: torch.export.export(model, (ids,)),
        lambda: make_fx(lambda x: model(x).logits)(ids),
        lambda: vmap(lambda x: model(x.unsqueeze(0)).logits)(ids),
    ):
        make()


@pytest.mark.parametrize("network", ESMS)
def test_positions_and_attentions_in_a_graph(network):
    model = small_model(network)
    batch = dict(batch_of(network))
    batch["position_ids"] = torch.randint(2, 900, batch["input_ids"].shape)
    theirs = model(**batch, output_attentions=True)  # first: Transformers cannot put up its hooks in a graph
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    ours = compiled(**batch, output_attentions=True)
    for one, other in zip((ours.logits, *ours.attentions), (theirs.logits, *theirs.attentions), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
