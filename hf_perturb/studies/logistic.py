"""Multinomial logistic regression with an L2 penalty, by L-BFGS, from one penalty to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]

GRADIENT = 3e-8  # greatest element at which a logistic probe is fitted
ITERATIONS = 1000  # most, of one strength
_MEMORY = 30  # pairs of vectors that L-BFGS keeps
_BLOCK = 4096  # rows


class Loss:
    """The loss of multinomial logistic regression, in coordinates in which it curves about alike in all directions.

    L-BFGS needs some ten times fewer steps in them than in the coefficients of features, for those of a network are
    far from independent, and classes far from equally frequent. The optimum is the same.

    Args:
        x: standardised rows, `(n, p)`.
        y: numbers of classes, each of which is there, `(n,)`.
    """

    def __init__(self, x: Floats, y: Array):
        _, self.rotation = scipy.linalg.eigh(x.T @ x, check_finite=False, driver="evd")
        self.x, counts = x @ self.rotation, np.bincount(y)
        self.of_truth = (y, np.arange(len(y)))
        # the optimum for no coefficients
        self.weights = np.zeros((x.shape[1], len(counts)))
        self.intercept = np.log(counts / len(y))

    def descend(self, penalty: float) -> float:
        """Go on to the optimum for a penalty, which is of the mean loss of a row; return the gradient that is left."""
        self._choose_coordinates(penalty)
        start = np.vstack([self.weights, self.intercept]) @ self.axes / self.steps
        options = {"maxcor": _MEMORY, "gtol": GRADIENT, "ftol": 0, "maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS}
        found = scipy.optimize.minimize(
            self._loss, start.ravel(), (penalty,), "L-BFGS-B", jac=True, options={**options, "maxls": 50}
        )
        placed = found.x.reshape(self.steps.shape) * self.steps @ self.axes.T
        self.weights, self.intercept = placed[:-1], placed[-1]
        return float(np.abs(found.jac).max())

    def _choose_coordinates(self, penalty: float) -> None:
        """Scale them by the second derivatives where the last optimum was."""
        chances = scipy.special.softmax(self._scores(self.weights, self.intercept), axis=0)
        n, mean = len(self.x), chances.mean(axis=1)
        # the first one is what adds the same to all classes, which changes nothing
        self.axes = scipy.linalg.eigh(np.diag(mean) - chances @ chances.T / n)[1][:, 1:]
        curves = chances.T @ self.axes**2 - (chances.T @ self.axes) ** 2
        second = np.full((self.x.shape[1] + 1, self.axes.shape[1]), penalty)
        for first in range(0, n, _BLOCK):
            second[:-1] += (self.x[first : first + _BLOCK] ** 2).T @ curves[first : first + _BLOCK] / n
        second[-1] = curves.mean(axis=0)
        self.steps = 1 / np.sqrt(np.maximum(second, np.finfo(np.float64).tiny))

    def _loss(self, flat: Floats, penalty: float) -> tuple[float, Floats]:
        """Return the mean loss with its penalty, and its gradient."""
        at, n = flat.reshape(self.steps.shape) * self.steps, len(self.x)
        scores = self._scores(*np.vsplit(at @ self.axes.T, [-1]))
        scores -= scores.max(axis=0)
        of_truth = scores[self.of_truth].sum()
        np.exp(scores, out=scores)
        sums = scores.sum(axis=0)
        loss = (np.log(sums).sum() - of_truth) / n + penalty / 2 * np.vdot(at[:-1], at[:-1])
        scores /= sums
        scores[self.of_truth] -= 1
        gradient = np.vstack([(scores @ self.x).T, scores.sum(axis=1)]) @ self.axes / n
        gradient[:-1] += penalty * at[:-1]
        return float(loss), (gradient * self.steps).ravel()

    def _scores(self, weights: Floats, intercept: Floats) -> Floats:
        """Return the scores of all rows, `(classes, n)`, in which the largest of each is found faster."""
        scores: Floats = weights.T @ self.x.T
        scores += intercept.reshape(-1, 1)
        return scores


class Descent:
    """The optimum for each strength, found when it is asked for, from that of the strength before."""

    def __init__(self, loss: Loss, strengths: Sequence[float], unit: float):
        self._loss, self._strengths, self._unit = loss, strengths, unit
        self._found: list[tuple[Floats, Floats]] = []
        self.warnings: list[str] = []

    def __call__(self, number: int) -> tuple[Floats, Floats]:
        """Return coefficients and intercept of the strength of a number."""
        for strength in self._strengths[len(self._found) : number + 1]:
            left = self._loss.descend(strength * self._unit)
            if left > 10 * GRADIENT:
                self.warnings.append(
                    f"a logistic probe at strength {strength:g} was not fitted in {ITERATIONS} steps: "
                    f"gradient {left:.1e}, not {GRADIENT:.0e}"
                )
            self._found.append((self._loss.rotation @ self._loss.weights, self._loss.intercept))
        return self._found[number]
