"""Golden digests: what notices a torch that draws or shuffles differently from the one that built the variants.

Made with torch 2.13.0 on x86-64 with AVX2. The base is integer arithmetic, exact everywhere and free of any generator.
Shuffles hold on every platform. Draws go through float32 arithmetic that
a processor without AVX2 rounds differently, so there the digests of reinit say nothing.

A failure is a finding: the documented rules then no longer give the published variants. Do not just write new numbers.
"""

from __future__ import annotations

import platform

import pytest
import torch
from support.models import CONFIGS, model_class

from hf_perturb.perturbation import digest_of

BASES = {
    "esm1": "fad3b15c567bc6aa24e0813a7634ae6dcc0ce0586150982764515babe407c455",
    "esm1b": "eaa29de01db759bc19f657a858406b591ed37c58676218f776064d402eb4dd58",
    "carp": "3d8136eaad2097b20f63a1e9313ac58f2dca06e8da90b947e297e3a226c7f6a5",
}
GOLDEN = {
    "esm1": {
        "reinit-documented": "12db2b247f2ddbc2cc9c49cb4cb67d691668eac74044ff34e43570fc48274798",
        "reinit-published": "c5cfcf40014cfd28d21643700698d06c5ea857fc129fa216fb8a3ddc2ee299d1",
        "resample-embedding": "816ea1972434603eb1cb7d4ea3c244c621f6d3340327172c4bb11751cac06398",
        "resample-rows": "b5f304ec3e1e3eb245d61729a472fe2ff4cfe7b65c500174b9494bf407dafc43",
        "resample-all": "612b1fe50636d1aea49c1559dcea2e9c652a1db838e5fe64d108fedfff98aa4e",
        "resample-published": "51fa0b0341462308fdf1c6949f283427f785eeaf933ed49b6722c129765c4888",
    },
    "esm1b": {
        "reinit-documented": "ba053ca40efef3806f9f95e2499d97ea0333e2487e27707daf5beef9ed20ed67",
        "reinit-published": "f4e32dcb812eaf7a4f2bfa68d8b6dc4b31cd6f38cd06dc90fe3327f25483958d",
        "resample-embedding": "17ffdda37e60fce327ce46fb4c030b61f90cc51aaa50cc096590f866aaac3073",
        "resample-rows": "76c0991e1f37ac1051efdfde10077d83581fe50aece0b3fb1587eed591b9f587",
        "resample-all": "0cb56048b757ea0216408503053cace41fa29ad56424bc7f2246079bfd711360",
        "resample-published": "b9633eb3cda777a7fede2a016ca98877fe67986d6adc02b45ee2c960a237585e",
    },
    "carp": {
        "reinit-documented": "efc1ab8fe97a1b69489d5f4ce9a8eae5cad16a87484de28c16fd2dda7a10a506",
        "reinit-published": "ecbabac6ce1b438818ead48e1d4faa8c808288215a8672043872fae86b3c0113",
        "resample-embedding": "989b187649c2e87264890ca623e402d1ccd76fce6b77e21a20917f66b6eb4d9d",
        "resample-rows": "64bac6d5bca26ccdb4620c47f785e510a6eb489f9c7300a62007cd42722f5d60",
        "resample-all": "421444d2c28b9e54e1dff127fb599187fadd0ccaf07fee7a3a89f8801111107a",
        "resample-published": "f9bfbd5aea4acbc3fba926d8376af56287b3d8e8e5de7dda58b06eef581fc27d",
    },
}


def arithmetic_model(network: str, head: str = "ForMaskedLM"):
    """Return a small network whose entry `i` of tensor `k` is `((48271 i + 7919 k) mod 65537 - 32768) / 32768`."""
    model = model_class(network, head)(CONFIGS[network]())
    with torch.no_grad():
        for k, tensor in enumerate(model.state_dict().values()):
            numbers = (48271 * torch.arange(tensor.numel()) + 7919 * k) % 65537 - 32768
            tensor.copy_((numbers.to(torch.float32) / 32768).view(tensor.shape))
    return model


def perturbation_of(name: str) -> dict[str, str]:
    method, variant = name.split("-")
    if variant in ("documented", "published"):
        return {"method": method, "rules": variant}
    return {"method": method, "axis": variant}


rounds_alike = platform.machine() in ("x86_64", "AMD64") and torch.backends.cpu.get_cpu_capability() != "DEFAULT"


@pytest.mark.parametrize("network", BASES)
def test_the_base_is_the_same_everywhere(network):
    assert digest_of(arithmetic_model(network).state_dict()) == "sha256:" + BASES[network]


@pytest.mark.parametrize(("network", "name"), [(network, name) for network, names in GOLDEN.items() for name in names])
def test_the_perturbed_weights_are_those_of_torch_2_13(network, name):
    if name.startswith("reinit") and not rounds_alike:
        pytest.skip("this processor rounds draws differently from x86-64 with AVX2")
    model = arithmetic_model(network).perturb({**perturbation_of(name), "seed": 42})
    assert digest_of(model.state_dict()) == "sha256:" + GOLDEN[network][name]


def test_no_two_goldens_are_alike():
    digests = [*BASES.values(), *(digest for names in GOLDEN.values() for digest in names.values())]
    assert len(set(digests)) == len(digests) == 3 + 3 * 6
