"""How probable a network finds residues at positions of a wild type, with and without a mask there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_perturb.embedding.encoder import AlphabetEncoder, Encoder
from hf_perturb.embedding.model import memory_told
from hf_perturb.errors import ModelInputError

# tokens of rows, and the row and column of each that is asked for, to logits `(asked for, vocabulary)`
Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Marginals:
    """Log-probabilities by a network that is loaded.

    Args:
        model: the network, with its language head.
        encoder: what it reads.
        limit: most residues that it takes at once, `None` for any number.
        tokens: most tokens of a batch.
    """

    def __init__(self, model: Any, encoder: Encoder, limit: int | None, tokens: int):
        self._encoder, self._limit, self._tokens = encoder, limit, tokens
        # the first weights of a network that is larger than its devices are nowhere until they are needed
        self._device = "cpu" if model.device.type == "meta" else model.device
        self._predict = self._of_ours(model) if isinstance(encoder, AlphabetEncoder) else self._of_any(model)

    def __call__(
        self,
        wildtype: str,
        places: NDArray[np.int64],
        letters: str,
        masked: bool,
        advance: Callable[[int], object] = lambda done: None,
    ) -> NDArray[np.float64]:
        """Return the logarithm of the probability of letters at places, `(places, letters)`.

        A wild type that is longer than the network takes is seen through a window in whose middle the place is, as far
        as the ends allow; what the window leaves out is not seen.

        Args:
            wildtype: A-Z.
            places: from 0.
            letters: each is one token.
            masked: hide each place in turn; else nothing is hidden.
            advance: called with how many more places are done.

        Raises:
            ModelInputError: if a probability is no number.
            EmbeddingsError: if the device's memory is too small.
        """
        columns = torch.tensor([int(self._encoder.ids_of(each)[0]) for each in self._encoder.pieces([*letters])])
        [pieces] = self._encoder.pieces([wildtype])
        width = min(len(pieces), self._limit or len(pieces))
        found = np.empty((len(places), len(letters)))
        for batch in self._batches(places.tolist(), len(pieces), width, masked):
            ids = self._encoder.encode([pieces[start : start + width] for start, _ in batch])
            asked = [
                (row, len(self._encoder.begin) + int(places[number]) - start, number)
                for row, (start, numbers) in enumerate(batch)
                for number in numbers
            ]
            rows, at, numbers = torch.tensor(asked).unbind(1)
            if masked:
                ids[rows, at] = int(self._encoder.mask or 0)  # of networks that have none, nothing is asked
            size = f"{len(batch)} rows of {ids.shape[1]} tokens"
            with memory_told(f"{self._device}, for {size}; give fewer with --tokens, or a smaller --dtype"):
                logits = self._predict(ids, rows, at).cpu()
            found[numbers.numpy()] = logits.double().log_softmax(-1)[:, columns].numpy()
            advance(len(asked))
        if not np.isfinite(found).all():
            raise ModelInputError(
                "a probability is NaN or infinite; so are weights, or this is too much for the type: try --dtype"
                " float32"
            )
        return found

    def _batches(
        self, places: Sequence[int], length: int, width: int, masked: bool
    ) -> Iterator[list[tuple[int, list[int]]]]:
        """Give rows, as where their window starts and the numbers of the places that are asked for in it."""
        starts = [min(max(place - width // 2, 0), length - width) for place in places]
        rows = [(start, [number]) for number, start in enumerate(starts)]
        if not masked:
            seen: dict[int, list[int]] = {}
            for number, start in enumerate(starts):
                seen.setdefault(start, []).append(number)
            rows = list(seen.items())
        at_once = max(1, self._tokens // (width + self._encoder.special))
        for first in range(0, len(rows), at_once):
            yield rows[first : first + at_once]

    def _of_ours(self, model: Any) -> Predict:
        """Run the trunk, and the head on nothing but what is asked for."""

        @torch.no_grad()
        def predict(ids: torch.Tensor, rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            last: list[torch.Tensor] = []

            def visit(number: int, values: torch.Tensor) -> None:
                if number == self._encoder.depth:
                    # no row has padding, so that tokens are where they are in `ids`
                    index = (rows * ids.shape[1] + at).to(values.device)
                    last.append(values.index_select(0, index).unsqueeze(0))

            model.visit_representations(visit, ids, device=self._device)
            logits: torch.Tensor = model.predict_tokens(last[0]).squeeze(0)
            return logits

        return predict

    def _of_any(self, model: Any) -> Predict:
        taken = signature(model.forward).parameters

        @torch.no_grad()
        def predict(ids: torch.Tensor, rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            ids = ids.to(self._device)
            given = {"attention_mask": torch.ones_like(ids)} if "attention_mask" in taken else {}
            logits: torch.Tensor = model(input_ids=ids, return_dict=True, **given).logits
            return logits[rows.to(logits.device), at.to(logits.device)]

        return predict
