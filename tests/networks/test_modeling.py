"""How the networks behave as Transformers models: inputs, outputs, losses, gradients, types, initialisation."""

from __future__ import annotations

import pytest
import torch
from support.models import CONFIGS, SEQUENCES, TIED, batch_of, layers_of, model_class, small_model
from transformers import AutoModelForMaskedLM

import hf_perturb


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(network, head, side):
    model = small_model(network, head)
    together = batch_of(network, side=side)
    output = model(**together)[0]
    for row, sequence in enumerate(SEQUENCES):
        alone = model(**batch_of(network, [sequence]))[0][0]
        mine = output[row] if head == "ForSequenceClassification" else output[row][together["attention_mask"][row] == 1]
        torch.testing.assert_close(mine, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("network", ["esm1", "esm1b", "esm2"])
def test_contacts_do_not_see_padding(network, side):
    model = small_model(network, "Model")
    together = batch_of(network, side=side)
    contacts = model.predict_contacts(**together)
    for row, sequence in enumerate(SEQUENCES):
        alone = model.predict_contacts(**batch_of(network, [sequence]))[0]
        length = len(sequence)
        block = slice(-length, None) if side == "left" else slice(0, length)
        torch.testing.assert_close(contacts[row, block, block], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("network", ["esm1", "esm1b", "esm2"])
def test_contacts_come_with_a_mask_of_what_is_a_residue(network, side):
    model = small_model(network, "Model")
    together = batch_of(network, side=side)
    contacts, mask = model.predict_contacts(**together, return_mask=True)
    assert torch.equal(contacts, model.predict_contacts(**together))
    assert (mask.dtype, mask.shape) == (torch.bool, contacts.shape[:2])
    for contact_map, inside, sequence in zip(contacts, mask, SEQUENCES, strict=True):
        alone = model.predict_contacts(**batch_of(network, [sequence]))[0]
        torch.testing.assert_close(contact_map[inside][:, inside], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", ["esm1", "esm1b", "esm2"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(network, implementation):
    model = small_model(network)
    expected = model(**batch_of(network)).logits
    model.set_attn_implementation(implementation)
    output = model(**batch_of(network), output_attentions=True)
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=0)
    length = batch_of(network)["input_ids"].shape[1]
    assert [tuple(a.shape) for a in output.attentions] == [(3, 4, length, length)] * 3


@pytest.mark.slow  # compiling for the CPU takes a minute
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler and of how Transformers calls it
def test_flex_attention_agrees():
    model = small_model("esm1b")
    batch = batch_of("esm1b")
    expected = model(**batch).logits
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():
        output = model(**batch).logits
    inside = batch["attention_mask"] == 1
    torch.testing.assert_close(output[inside], expected[inside], atol=1e-5, rtol=0)
    # attentions, and so contacts, come from the eager path all the same
    assert model.predict_contacts(**batch).shape[0] == len(SEQUENCES)


def test_what_is_not_supported_is_refused():
    with pytest.raises(ValueError, match="flex_attention"):
        small_model("esm1").set_attn_implementation("flex_attention")
    for network in ("esm1", "esm1b", "esm2"):
        with pytest.raises((ValueError, ImportError), match=r"[Ff]lash"):
            small_model(network).set_attn_implementation("flash_attention_2")


def test_hidden_states_are_the_representations_and_outputs_come_as_tuples(network, head):
    model = small_model(network, head)
    output = model(**batch_of(network), output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    as_tuple = model(**batch_of(network), return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], output[0])
    if head == "Model":
        torch.testing.assert_close(output.last_hidden_state, output.hidden_states[-1])


def test_a_config_may_ask_for_tuples(network, head):
    model = small_model(network, head)
    model.config.return_dict = False
    assert isinstance(model(**batch_of(network)), tuple)


def test_a_hidden_residue_behind_the_mask_does_not_count():
    model = small_model("esm1b")
    alone = model(torch.tensor([[0, 5, 6, 7, 2]])).logits
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    padded = model(torch.tensor([[0, 5, 6, 7, 2, 32]]), attention_mask=mask).logits
    torch.testing.assert_close(padded[:, :5], alone, atol=1e-5, rtol=0)


def test_an_accumulated_loss_is_divided_by_all_labels(network):
    batch = batch_of(network)
    for head in ("ForMaskedLM", "ForTokenClassification"):
        model = small_model(network, head)
        labels = batch["input_ids"].clamp(max=1)
        mean = model(**batch, labels=labels).loss
        halved = model(**batch, labels=labels, num_items_in_batch=2 * labels.numel()).loss
        torch.testing.assert_close(halved, mean / 2)
    assert small_model(network, "ForSequenceClassification").accepts_loss_kwargs is False


def test_embeddings_in_place_of_ids(network, head):
    model = small_model(network, head)
    batch = batch_of(network, SEQUENCES[:1])
    embeds = model.get_input_embeddings()(batch["input_ids"])
    output = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"])[0]
    if head == "ForSequenceClassification" and network != "carp":
        # without ids the tokens that begin and end a sequence cannot be told from residues
        assert output.shape == (1, 2)
        return
    torch.testing.assert_close(output, model(input_ids=batch["input_ids"])[0], atol=1e-5, rtol=0)


# newer Transformers have another name for it, older ones only this
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(network):
    gradients = []
    for checkpointing in (False, True):
        model = small_model(network).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        batch = batch_of(network)
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 20
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)


def test_losses(network):
    batch = batch_of(network)
    model = small_model(network)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    output = model(**batch, labels=labels)
    wanted = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss, wanted)
    tokens = small_model(network, "ForTokenClassification", num_labels=3)
    classes = labels.clamp(max=2)
    output = tokens(**batch, labels=classes)
    wanted = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), classes.flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss, wanted)


@pytest.mark.parametrize(
    ("num_labels", "labels", "wanted"),
    [
        (3, torch.tensor([0, 2, 1]), lambda x, y: torch.nn.functional.cross_entropy(x, y)),
        (1, torch.tensor([0.5, 2.0, 1.0]), lambda x, y: ((x[:, 0] - y) ** 2).mean()),
        (2, torch.rand(3, 2), lambda x, y: torch.nn.functional.binary_cross_entropy_with_logits(x, y)),
    ],
    ids=["classes", "regression", "several-labels"],
)
def test_sequence_classification_losses(network, num_labels, labels, wanted):
    model = small_model(network, "ForSequenceClassification", num_labels=num_labels)
    output = model(**batch_of(network), labels=labels)
    torch.testing.assert_close(output.loss, wanted(output.logits, labels))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.tensor([[5, 99]])}, "got ids from 5 to 99; allowed: 0 to"),
        ({"input_ids": torch.tensor([[-1, 5]])}, "got ids from -1 to 5"),
        ({"input_ids": torch.tensor([5, 6])}, r"got shape \(2,\); allowed: \(batch, length\)"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "at least one token"),
        ({"input_ids": torch.tensor([[0.5, 1.0]])}, "float32; allowed: torch.int64 or torch.int32"),
        (
            {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 3)},
            r"attention_mask: got shape \(1, 3\)",
        ),
        ({"inputs_embeds": torch.zeros(1, 4, 7)}, r"got shape \(1, 4, 7\); allowed: \(batch, length, "),
        ({"input_ids": torch.tensor([[5]], dtype=torch.uint8)}, "uint8; allowed: torch.int64 or torch.int32"),
        ({"input_ids": [[5, 6]]}, "got a list; allowed: a tensor"),
        ({"inputs_embeds": torch.zeros(1, 0, 32)}, r"inputs_embeds: got shape \(1, 0, "),
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": torch.tensor([[5]]), "inputs_embeds": torch.zeros(1, 1, 32)}, "exactly one of"),
    ],
)
def test_bad_inputs_are_refused(network, head, inputs, message):
    with pytest.raises(ValueError, match=message) as caught:
        small_model(network, head)(**inputs)
    assert isinstance(caught.value, hf_perturb.HfPerturbError)


def test_length_limit_of_learned_positions():
    model = small_model("esm1b")
    assert model(torch.full((1, 1024), 5)).logits.shape == (1, 1024, 33)
    with pytest.raises(ValueError, match="got 1025 tokens; allowed: at most 1024, special tokens included"):
        model(torch.full((1, 1025), 5))
    assert small_model("esm1")(torch.full((1, 1100), 5)).logits.shape == (1, 1100, 35)


def test_alphabet_cannot_be_resized(network, head):
    model = small_model(network, head)
    size = CONFIGS[network]().vocab_size
    with pytest.raises(ValueError, match=rf"got 40; allowed: {size}, .*cannot be resized"):
        model.resize_token_embeddings(40)
    with pytest.raises(ValueError, match=r"got 64; .*cannot be resized"):
        model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model.config.vocab_size == size
    for same in ((), (None,), (size,), (size, size), (size - 1, size), (None, 1)):
        assert model.resize_token_embeddings(*same) is model.get_input_embeddings()


def test_the_embedding_can_be_exchanged(network, head):
    model, batch = small_model(network, head), batch_of(network)
    old, before = model.get_input_embeddings(), model(**batch)[0]
    new = torch.nn.Embedding.from_pretrained(2 * old.weight.detach())
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    assert (model(**batch)[0] - before).abs().max() > 1e-3
    model.set_input_embeddings(old)
    assert torch.equal(model(**batch)[0], before)


def test_output_embeddings_are_no_module_and_are_not_exchanged(network, head):
    model = small_model(network, head)
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"set_output_embeddings: got a Linear; .*get_output_embeddings\(\) is None"):
        model.set_output_embeddings(torch.nn.Linear(32, 33))
    assert model.get_output_embeddings() is None
    assert dict(model.named_modules()) == before


def test_what_a_network_declares_of_its_modules_is_there(network, head):
    model = small_model(network, head)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for tied in (model._tied_weights_keys or {}).items():
        assert parameters[tied[0]] is parameters[tied[1]]
    assert bool(model._tied_weights_keys) is ((network in TIED) and head == "ForMaskedLM")
    kept = model._keep_in_fp32_modules_strict | model._keep_in_fp32_modules
    assert kept == ({"rot_emb"} if network == "esm2" else set())
    assert all(any(part in name.split(".") for name, _ in model.named_modules()) for part in kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rotary_frequencies_are_not_rounded(dtype, tmp_path):
    small_model("esm2").save_pretrained(tmp_path)
    config = CONFIGS["esm2"]()
    for model in (
        AutoModelForMaskedLM.from_config(config, dtype=dtype),
        AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=dtype),
        small_model("esm2").to(dtype),
    ):
        for layer in model.layers:
            rotary = layer.self_attn.rot_emb
            assert rotary.inv_freq.dtype == torch.float32
            assert torch.equal(rotary.inv_freq, rotary.frequencies())
        assert model.lm_head.dense.weight.dtype == dtype


@pytest.mark.parametrize(
    ("config", "sizes", "message"),
    [
        (hf_perturb.CarpConfig, {"kernel_size": 4}, "kernel_size: got 4; allowed: an odd"),
        (hf_perturb.CarpConfig, {"hidden_size": 7, "slim": True}, "needs an even number"),
        (hf_perturb.CarpConfig, {"mask_token_id": 99}, "mask_token_id: got 99; allowed: an id from 0 to 29"),
        (hf_perturb.CarpConfig, {"pad_token_id": None}, "pad_token_id"),
        (hf_perturb.FairEsmConfig, {"mask_token_id": 33}, "mask_token_id: got 33; allowed: an id from 0 to 32"),
        (hf_perturb.CarpConfig, {"num_hidden_layers": 0}, "num_hidden_layers: got 0"),
        (hf_perturb.CarpConfig, {"hidden_act": "swish"}, "hidden_act"),
        (hf_perturb.FairEsmConfig, {"hidden_size": 30, "num_attention_heads": 4}, "a multiple of num_attention_heads"),
        (hf_perturb.FairEsmConfig, {"model_version": "ESM-9"}, "model_version"),
        (hf_perturb.FairEsmConfig, {"model_version": "ESM-1", "tie_word_embeddings": True}, "tie_word_embeddings"),
        (hf_perturb.FairEsmConfig, {"pad_token_id": 3}, "pad_token_id: got 3; allowed: 1"),
        (hf_perturb.FairEsmConfig, {"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_impossible_configs_are_refused(config, sizes, message):
    with pytest.raises(Exception, match=message):
        config(**sizes)


def test_a_bad_perturbation_is_refused_by_the_config(network):
    with pytest.raises(ValueError, match="axis: got 'all'"):
        CONFIGS[network](perturbation={"method": "reinit", "axis": "all"})
    config = CONFIGS[network]()
    with pytest.raises(ValueError, match="seed: got -1"):
        config.perturbation = {"method": "reinit", "seed": -1}
    assert config.perturbation is None
    assert "perturbation" not in config.to_dict()


def test_bf16_follows_fp32(network):
    model, batch = small_model(network, "Model"), batch_of(network)
    expected = model(**batch).last_hidden_state
    output = model.to(torch.bfloat16)(**batch).last_hidden_state
    assert output.dtype == torch.bfloat16
    residues = batch["attention_mask"] == 1
    cosine = torch.nn.functional.cosine_similarity(output.float()[residues], expected[residues], dim=-1)
    assert cosine.min() > 0.995


def test_sharded_checkpoints_and_ties(network, tmp_path):
    model = small_model(network)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    if network in TIED:
        assert loaded.lm_head.weight is loaded.embed_tokens.weight


def test_missing_tensors_are_drawn_and_loaded_ones_kept(network, tmp_path):
    """A headless checkpoint under a head: the trunk keeps its bits, what is missing starts as a new network does."""
    trunk = small_model(network, "Model")
    trunk.save_pretrained(tmp_path)
    model = model_class(network, "ForTokenClassification").from_pretrained(tmp_path)
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert model.classifier.out_proj.weight.std() > 0
    assert torch.isfinite(model(**batch_of(network)).logits).all()
    assert len(layers_of(model)) == model.config.num_hidden_layers
