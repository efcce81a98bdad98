"""Train the demo base: a CARP of the `carp_600k` size on UniProtKB sequences, with Transformers' own Trainer.

Writes `hf_perturb/demo/carp_demo` (config, weights, tokenizer, card) and `held_out.fasta.gz` beside it.
Needs `pip install -e .[train]`. About one to two hours on two cores.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from evaluation import masked_lm_loss
from transformers import (
    DataCollatorForLanguageModeling,
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_perturb import demo
from hf_perturb.checkpoints.checkpoint import auto_map
from hf_perturb.checkpoints.network import CARP
from hf_perturb.checkpoints.tokenizers import save_tokenizer
from hf_perturb.networks.configuration_carp import CarpConfig
from hf_perturb.networks.modeling_carp import CarpForMaskedLM
from hf_perturb.perturbation import digest_of

CARD = Path(__file__).parent.parent / "model_cards" / "demo_base.md"
HELD_OUT = 200
CROP = 256  # residues
LENGTHS = range(50, 1023)  # residues, of held-out sequences: whole in every documented model


class Crops(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A random window of `CROP` residues of each sequence, another one at each visit."""

    def __init__(self, sequences: list[str], tokenizer: Any):
        self.encoded = tokenizer(sequences)["input_ids"]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids = self.encoded[index]
        start = int(torch.randint(max(1, len(ids) - CROP + 1), ()))
        return {"input_ids": ids[start : start + CROP]}


class Report(TrainerCallback):
    """Held-out loss at every evaluation, and a stop when the time is up."""

    def __init__(self, minutes: float):
        self.deadline = time.monotonic() + 60 * minutes

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() > self.deadline:
            control.should_evaluate = control.should_save = control.should_training_stop = True


class HeldOutTrainer(Trainer):
    """Evaluates with the loss that the quickstart prints: the same sequences, the same masks."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.model.eval()
        loss = masked_lm_loss(self.model, self.processing_class, self.eval_dataset)
        metrics = {"eval_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def split(records: list[tuple[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the sequences to train on and the records to hold out; no sequence is in both."""
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0)).tolist()
    fitting = [i for i in order if len(records[i][1]) in LENGTHS]
    held_out = [records[i] for i in fitting[:HELD_OUT]]
    unseen = {sequence for _, sequence in held_out}
    return [sequence for _, sequence in records if sequence not in unseen], held_out


def residue_frequency_loss(train: list[str], held_out: list[str]) -> float:
    """Cross-entropy in nats of always answering with the residue frequencies of the training sequences."""
    counts = torch.tensor([float(sum(s.count(token) for s in train)) for token in CARP.tokens])
    logp = (counts + 1).div((counts + 1).sum()).log()
    ids = [CARP.tokens.index(residue) for sequence in held_out for residue in sequence]
    return -float(logp[ids].mean())


def train(arguments: argparse.Namespace) -> None:
    """Train, keep the best weights, write the demo folder."""
    set_seed(0)
    sequences, held_out = split(demo.read_fasta(arguments.fasta))
    arguments.work.mkdir(parents=True, exist_ok=True)
    save_tokenizer(CARP, arguments.work)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.work)
    model = CarpForMaskedLM(CarpConfig(hidden_size=128, num_hidden_layers=16, slim=True))
    trainer = HeldOutTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Crops(sequences, tokenizer),
        eval_dataset=[sequence for _, sequence in held_out],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        callbacks=[Report(arguments.minutes), EarlyStoppingCallback(early_stopping_patience=6)],
        args=TrainingArguments(
            output_dir=str(arguments.work),
            max_steps=arguments.steps,
            per_device_train_batch_size=32,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=200,
            weight_decay=0.01,
            max_grad_norm=1.0,
            eval_strategy="steps",
            eval_steps=arguments.eval_steps,
            save_steps=arguments.eval_steps,
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            logging_steps=50,
            report_to="none",
            disable_tqdm=not sys.stderr.isatty(),
            use_cpu=True,
            seed=0,
        ),
    )
    trainer.train()
    figures = {
        "held_out_loss_nats": trainer.evaluate()["eval_loss"],
        "residue_frequency_loss_nats": residue_frequency_loss(sequences, [s for _, s in held_out]),
        "uniform_loss_nats": math.log(20),
        "training_sequences": len(sequences),
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "history": [(h["step"], h["eval_loss"]) for h in trainer.state.log_history if "eval_loss" in h],
    }
    write(arguments.output, trainer.model, tokenizer, held_out, figures)


def write(output: Path, model: Any, tokenizer: Any, held_out: list[tuple[str, str]], figures: Any) -> None:
    """Write the demo folder and the held-out sequences beside it."""
    target = output / "carp_demo"
    shutil.rmtree(target, ignore_errors=True)
    model.config.digest, model.config.auto_map = digest_of(model.state_dict()), auto_map("carp")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "README.md").write_text(card(figures), encoding="utf-8")
    text = "".join(f">{header}\n{sequence}\n" for header, sequence in held_out)
    (output / "held_out.fasta.gz").write_bytes(gzip.compress(text.encode("ascii"), mtime=0))
    print(json.dumps(figures))


def card(figures: dict[str, Any]) -> str:
    """Render the model card of the demo base."""
    history = ", ".join(f"{step:,}: {loss:.3f}" for step, loss in dict(figures["history"]).items())
    return CARD.read_text(encoding="utf-8").format(**{**figures, "history": history, "crop": CROP})


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path, help="gzipped FASTA file with the UniProtKB sequences")
    parser.add_argument("--output", type=Path, default=Path("hf_perturb/demo"), help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="checkpoints; default: %(default)s")
    parser.add_argument("--steps", type=int, default=6000, help="most steps of 32 windows (default: %(default)s)")
    parser.add_argument("--eval-steps", type=int, default=250, help="steps between evaluations")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=120, help="stop after so long (default: %(default)s)")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
