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
    "esm1": "a8b2f7ce801bdfe38c3f2b54ae47499a10ba0108bd4e1046307ecbf39e23fcaf",
    "esm1b": "5bfa931d0500f770dfc66591dce020c4ee7c2c57356b4c88a51b5d027fbdffa3",
    "carp": "209221887a028faecd1476570d613046a3a91fbf2804b1f2702ea9536f52d882",
}
GOLDEN = {
    "esm1": {
        "reinit-documented": "d17832a5309ef1d31bf79623b9cb32f3dc2b94649a53f3340776eaef204d7eb0",
        "reinit-published": "31c11d62f052d4e3699638dd7488a244f952fecb148e31817a3361f7febf80df",
        "resample-embedding": "058d182af2acb5dc2eac00c8fa0dd8bedeafa4d749c0b1919a1b2a4ef5137459",
        "resample-rows": "8f116e72da9a5492beef3834aada644a9825c71a721150e53eac272e961a2d26",
        "resample-all": "687a41882f09a7c9c6eb775b3d5b6e1ebd77df6035a5e6cf3f35d7b4f01fb126",
        "resample-published": "8e30a8d8c9de2e28372114c952fae9da4c36eecb7a53ab8035fd8f973b2f5452",
    },
    "esm1b": {
        "reinit-documented": "6c74a5914eccefab99858f40ee48ac7e27a083420a12ed99c0e30902f720cb53",
        "reinit-published": "77ff73f0e76e67726a04930eea510acf93f09fea33b4b4edd0ed381f2c414f7a",
        "resample-embedding": "2e26f9681a8f59c462a61b0969ed1a131dbd18a13575157f89b379cad3c4e994",
        "resample-rows": "4e1147308f570adb6c6db111d27d761da09810ed18487c665685f3b2015eaf7a",
        "resample-all": "f2021c058af2669c9b806f9f2f114023e82c2d1fbe6129404d81e83203b343e4",
        "resample-published": "397544e82fb87ea2a21211aaadc8ac26dffa3fb20109fa99157322f7a92ca729",
    },
    "carp": {
        "reinit-documented": "569d6391b0abbcc76594676503407a77ddb03d7e86e6ada1841b531449b27840",
        "reinit-published": "1fbea7da79c2779409e0156c31a1eac618f48aa60fc7f3bee54b477e6847253a",
        "resample-embedding": "cab8587b2fbb294bcac7c140b62672166f562962856b4a83e3592c30275ee18d",
        "resample-rows": "18258d258a729e723a851b92c69580ab0bfbd3d09672f1f10da0ab615de6f0e3",
        "resample-all": "48d2c19f643be9248ded7e02eb0c7943292f5dc792308ed3bc295f19af9161b2",
        "resample-published": "08f02e563d941183e33d657f7d64563bb77bfc0363d15afb3fc8686bd99f941f",
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
    assert digest_of(arithmetic_model(network).state_dict()) == "blake3:" + BASES[network]


@pytest.mark.parametrize(("network", "name"), [(network, name) for network, names in GOLDEN.items() for name in names])
def test_the_perturbed_weights_are_those_of_torch_2_13(network, name):
    if name.startswith("reinit") and not rounds_alike:
        pytest.skip("this processor rounds draws differently from x86-64 with AVX2")
    model = arithmetic_model(network).perturb({**perturbation_of(name), "seed": 42})
    assert digest_of(model.state_dict()) == "blake3:" + GOLDEN[network][name]


def test_no_two_goldens_are_alike():
    digests = [*BASES.values(), *(digest for names in GOLDEN.values() for digest in names.values())]
    assert len(set(digests)) == len(digests) == 3 + 3 * 6
