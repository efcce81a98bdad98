"""The metrics of a study as scipy and scikit-learn have them."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import spearmanr
from sklearn import metrics as theirs


def spearman(truth, prediction):
    constant = len({*truth}) == 1 or len({*prediction}) == 1
    return 0.0 if constant else spearmanr(truth, prediction)[0]


def r2(truth, prediction):
    # scikit-learn says nothing of a single row, and does not see that values are equal where their mean is rounded
    return float((truth == prediction).all()) if len({*truth}) == 1 else theirs.r2_score(truth, prediction)


def ndcg(truth, prediction):
    """As the study has it: shifted where something is less than 0."""
    gains = truth - truth.min() if truth.min() < 0 else truth
    return float(gains[0] > 0) if len(truth) == 1 else theirs.ndcg_score(gains[None], prediction[None])


def auroc(truth, prediction):
    columns = [1] if prediction.shape[1] == 2 else [*range(prediction.shape[1])]
    there = [each for each in columns if 0 < (truth == each).sum() < len(truth)]
    return np.mean([theirs.roc_auc_score(truth == each, prediction[:, each]) for each in there]) if there else 0.5


def of_classes(score):
    def scored(truth, prediction):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a class that is said and not there
            return score(truth, prediction.argmax(axis=1))

    return scored


EXPECTED = {
    "spearman": spearman,
    "r2": r2,
    "ndcg": ndcg,
    "auroc": auroc,
    "mcc": of_classes(theirs.matthews_corrcoef),
    "balanced_accuracy": of_classes(theirs.balanced_accuracy_score),
    "macro_f1": of_classes(lambda *rows: theirs.f1_score(*rows, average="macro")),
}
