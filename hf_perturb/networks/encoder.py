# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""How both families run their trunk: without padding where that gives the same, and showing each layer on request."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import capture_outputs

from .inputs import check_inputs, check_keywords, sequence_mask
from .packing import Packing
from .perturbable import PerturbablePreTrainedModel
from .record import ModelInputError

# called with the number of a representation and its values
Visit = Callable[[int, torch.Tensor], object]


class EncoderPreTrainedModel(PerturbablePreTrainedModel):
    """A trunk that embeds tokens, and runs layers on them; subclasses say how."""

    supports_gradient_checkpointing = True

    # arguments of `forward` that the family has no use for, and why
    _unused_keywords: dict[str, str] = {}

    def build_trunk(self, config: Any) -> None:
        """Register the modules up to the last representation, in the order of the original."""
        raise TypeError(f"{type(self).__name__} has no trunk")

    def embed(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return representation 0 of the original, `(batch, length, hidden_size)`."""
        raise TypeError(f"{type(self).__name__} has no trunk")

    def packs(self, packing: Packing, **kwargs: Any) -> bool:
        """Whether the layers may run without padding, and are not slower for it; `kwargs` are those of `forward`."""
        raise TypeError(f"{type(self).__name__} has no trunk")

    def stack(self) -> tuple[nn.ModuleList, nn.Module | None]:
        """Return the layers, and the norm after the last one."""
        raise TypeError(f"{type(self).__name__} has no trunk")

    def layer_masks(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor,
        packing: Packing | None,
        positions: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return what every layer is given beside its hidden states; the arguments are those of `run_layers`."""
        raise TypeError(f"{type(self).__name__} has no trunk")

    def get_output_embeddings(self) -> None:
        # no module of a language head is a projection alone, with the weight and bias that Transformers would exchange
        return None

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Raise, for there is no module to exchange.

        Raises:
            ValueError: always.
        """
        raise ModelInputError(
            f"{type(self).__name__}.set_output_embeddings: got a {type(new_embeddings).__name__}; no module of this"
            " network is an output embedding (get_output_embeddings() is None); copy values into the parameters of its"
            " language head, whose names state_dict() tells"
        )

    def begin(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        position_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Check the inputs; return representation 0 and which positions are not padding, `(batch, length)`."""
        check_inputs(self.config, input_ids, attention_mask, inputs_embeds, position_ids)
        mask = sequence_mask(self.config, input_ids, attention_mask, inputs_embeds)
        return self.embed(input_ids, inputs_embeds, mask, position_ids), mask

    @capture_outputs
    def run_layers(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor,
        packing: Packing | None = None,
        visit: Visit | None = None,
        depth: int | None = None,
        positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Run the layers on representation 0.

        Args:
            hidden_states: `(batch, length, hidden_size)`, or packed, `(1, tokens, hidden_size)`.
            mask: which positions are not padding, `(batch, length)`.
            packing: that of the hidden states, if they are packed.
            visit: called after each layer with its number, from 1, and the representation, shaped as `hidden_states`.
            depth: the layer to stop after; `None` for the last one.
            positions: those of the tokens, `(batch, length)` or `(1, length)`, also if the hidden states are packed;
                `None` to count them.
            **kwargs: those of `forward`.
        """
        layers, norm = self.stack()
        masks = self.layer_masks(hidden_states, mask, packing, positions, **kwargs)
        for number, layer in enumerate(layers, start=1):
            hidden_states = layer(hidden_states, packing=packing, **masks, **kwargs)
            if norm is not None and number == len(layers):
                hidden_states = norm(hidden_states)
            if visit is not None:
                visit(number, hidden_states)
            if number == depth:
                break
        return BaseModelOutput(last_hidden_state=hidden_states)

    def encode(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Run the trunk; see the `forward` of the class without a head."""
        check_keywords(self, position_ids=position_ids, **kwargs)
        hidden_states, mask = self.begin(input_ids, attention_mask, inputs_embeds, position_ids)
        # CODEPATH: at inference, padding is taken out of the batch before the layers, and is zeros after them;
        # whoever looks inside sees it.
        packing = Packing(mask)
        if not self.packs(packing, **kwargs):
            return self.run_layers(hidden_states, mask, positions=position_ids, **kwargs)
        outputs: Any = self.run_layers(
            packing.pack(hidden_states), mask, packing=packing, positions=position_ids, **kwargs
        )
        last = outputs.last_hidden_state = packing.unpack(outputs.last_hidden_state)
        if outputs.hidden_states is not None:
            # Transformers puts None for those that were not selected
            states = [None if x is None else packing.unpack(x) for x in outputs.hidden_states[:-1]]
            outputs.hidden_states = (*states, None if outputs.hidden_states[-1] is None else last)
        return outputs

    @torch.no_grad()
    def visit_representations(
        self,
        visit: Visit,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        depth: int | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[int, ...]:
        """Show each representation as it is made, so that none has to be kept.

        Args:
            visit: called with the number of a representation, 0 for the embedding and then those of the layers, and its
                values, `(tokens, hidden_size)`: the tokens of all sequences one after another, without padding. They
                are those of `hidden_states`, so the last one is normed where the network norms it.
            input_ids: tokens, `(batch, length)`.
            attention_mask: `(batch, length)` or `None`.
            depth: the layer to stop after; `None` for the last one.
            device: where the network takes tokens that are not there yet. Those that are in this process's memory are
                looked at before they are sent, so that nothing here waits for the device.

        Returns:
            The tokens of each sequence.

        Raises:
            ValueError: if an id, a shape, a mask or a length is not one that the network can take.
        """
        check_inputs(self.config, input_ids, attention_mask, None)
        packing = Packing(sequence_mask(self.config, input_ids, attention_mask, None))
        if device is not None:
            packing, input_ids = packing.to(device), input_ids.to(device)
        hidden_states = self.embed(input_ids, None, packing.mask)
        # whatever the config wants kept
        nothing: dict[str, Any] = {"output_hidden_states": False, "output_attentions": False}
        packed = self.packs(packing, **nothing)

        def show(number: int, representation: torch.Tensor) -> None:
            visit(number, (representation if packed else packing.pack(representation)).squeeze(0))

        if packed:
            hidden_states = packing.pack(hidden_states)
        show(0, hidden_states)
        if depth != 0:
            given = packing if packed else None
            self.run_layers(hidden_states, packing.mask, given, show, depth, return_dict=True, **nothing)
        return packing.lengths
