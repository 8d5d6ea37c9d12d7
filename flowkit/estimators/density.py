"""FlowDensity: a normalizing flow as a density estimator of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import DensityMixin
from sklearn.utils.validation import check_is_fitted

from flowkit import checks
from flowkit.estimators.base import FlowEstimator, seed_from
from flowkit.estimators.rounded import cell_log_prob

_SAMPLES_AT_ONCE = 8192


class FlowDensity(DensityMixin, FlowEstimator):
    r"""Estimate a density with a normalizing flow: an estimator of scikit-learn.

    .. math:: \max \sum_i w_i \log p(x_i), \quad \log p(x) = \log p_Z(T(x)) + \log|\det T'(x)|

    over the parameters of a flow that a recipe builds. The flow is trained in float32, or in
    float64 if the spread of a column is below a thousandth of its size (dates, say), and scores in
    float64.

    Args:
        recipe: ``"auto"``, or the name of a flow in :mod:`flowkit.recipes`, such as
            ``"coupling_flow"``, ``"autoregressive_flow"`` or ``"elementwise_flow"``. ``"auto"``
            compares a normal, a Gaussian copula with spline margins, mixtures of normals, an
            autoregressive flow and from 1,000 samples on a coupling flow on held-out samples, in
            three splits up to 500 samples, two up to 2,000 and one beyond, and averages the
            densities of up to three of them, with the weights that maximise the held-out
            likelihood of the average. For one column no flows are tried: its copula is a spline,
            and a flow of its margin. What is cheap is then fitted to all samples; flows are
            averaged over the splits. One part in n + 1 is a Student-t density, so that a sample
            far from all n others costs little more than it is unusual. Equal samples (from ten
            different ones on), or the ``groups`` of :meth:`fit`, are held out together, and
            rounded columns get their noise once, the same for all.
        options: Arguments of the recipe other than ``features``, such as
            ``{"layers": 4, "hidden": (64, 64)}``; ``None`` for its defaults. A grid search runs
            over a list of such dicts. With ``"auto"`` only ``lower`` and ``upper``.
        epochs: Maximum number of epochs, validated after each. With neither
            ``epochs`` nor ``steps``, at most 20,000 steps, validated every 25 or so.
        steps: Maximum number of optimizer steps, in place of ``epochs``.
        batch_size: Samples per step; ``None`` for a power of two near a twelfth of the samples,
            between 64 and 1,024.
        lr: Learning rate of Adam, constant at first, and lowered to zero at the end of the fit or
            when the validation likelihood has stopped improving.
        validation: Fraction of the samples held out to choose the best weights, in [0, 1); ``0``
            or ``None`` trains on all samples for all steps, where neither number is given 100
            epochs but between 2,000 and 20,000 steps; not with ``"auto"``.
        patience: Validations without a better likelihood before the rate is lowered; ``None`` for
            no limit.
        dequantize: Width w of the cells to which the data were rounded, in the units of the data:
            one number, or one per column with 0 for columns that were not rounded. ``1`` suits
            integers. A value stands for the cell :math:`[x - w/2, x + w/2)` around it (see
            :func:`flowkit.data.dequantize`): every training step sees :math:`x + u`,
            :math:`u \sim U[-w/2, w/2)`, drawn anew; scores are averages of the density over the
            cell, and samples are rounded back. Without it, a column with many ties is fitted by
            ever narrower spikes.
        random_state: Seed of the weights, the split, the shuffling and the noise: an int, a
            ``numpy.random.RandomState``, which is advanced, or ``None`` for a different fit each
            time. The global random states of NumPy and torch are neither read nor changed.
        verbose: Whether to show a progress bar, with ``"auto"`` how the densities compare.
        device: Where to train: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` and so on. The fitted flow
            comes back to the CPU, so that a pickle opens on any machine.
        compile: Whether to compile the training steps; see :func:`flowkit.fit`.

    Attributes:
        flow_: The fitted :class:`flowkit.Flow`, with ``recipe="auto"`` a
            :class:`flowkit.FlowMixture`, in float64 and evaluation mode. After
            ``flow_.to("cuda")`` the estimator scores and samples there.
        dtype_: The dtype in which the flow was trained, and is written to files.
        history_: The :class:`flowkit.History` of the fit; with ``recipe="auto"`` that of the
            flow of most weight, empty if no flow has weight.
        comparison_: With ``recipe="auto"``: names, held-out scores and weights of the candidates.
            The scores chose the weights, and are no estimate of what new samples score.
        lattice_: Widths and offsets of the values that rounded columns can take.
        n_features_in_: Number of columns seen by ``fit``.
        feature_names_in_: Names of the columns, if ``fit`` was given a frame with text names.

    Raises:
        ArgumentError: From ``fit``, if an argument is out of its range, or the recipe or one of
            its options is unknown or does not fit.
        DataError: From ``fit``, if a column is constant or beyond the range of float64, or if the
            device or the weights cannot be used; also from ``score_samples``, if values of a
            column are not rounded as ``dequantize`` says.
        ValueError: From ``fit``, ``score_samples`` and ``score``, in scikit-learn's wording, for
            NaN, infinity, text, a single row, or another number of columns than in ``fit``.
        NonFiniteLossError: From ``fit``, if the loss becomes NaN or infinite.

    References:
        Papamakarios et al. 2021, Normalizing Flows for Probabilistic Modeling and Inference,
        arXiv 1912.02762.

    Example:
        >>> import numpy as np
        >>> from flowkit.estimators import FlowDensity
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> model = FlowDensity("elementwise_flow", epochs=3, random_state=0)
        >>> log_density = model.fit(X).score_samples(X)
        >>> log_density.shape, log_density.dtype, bool(model.score(X) == log_density.mean())
        ((200,), dtype('float64'), True)
        >>> model.sample(5, random_state=1).shape
        (5, 2)
    """

    def fit(
        self, X: Any, y: Any = None, *, sample_weight: Any = None, groups: Any = None
    ) -> FlowDensity:
        """Fit the flow.

        Args:
            X: ``(samples, columns)``, numbers, in any units: the flow standardises for itself.
            y: Ignored; pipelines pass it.
            sample_weight: ``(samples,)``, non-negative; a weight of 2 counts as two samples, and a
                weight of 0 takes the sample out. Only the ratios matter.
            groups: ``(samples,)``, names of groups, such as the patient of each measurement:
                ``validation`` then is the fraction of groups that is held out, and no group is
                both held out and trained on. Without it, ``recipe="auto"`` takes equal samples as
                groups. Not read where nothing is held out.

        Returns:
            The estimator itself.

        Raises:
            DataError, ArgumentError, ValueError, NonFiniteLossError: See the class.

        Example:
            >>> import numpy as np
            >>> from flowkit.estimators import FlowDensity
            >>> X = np.array([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]])
            >>> FlowDensity().fit(X)
            Traceback (most recent call last):
            ...
            flowkit.errors.DataError: column(s) 1 of X are constant, so they have no density;
            remedy: drop them, or set dequantize to the width to which they were rounded
        """
        return self._fit_flow(X, sample_weight, groups)

    def score_samples(self, X: Any) -> np.ndarray:
        """Compute the log-density of every sample, in nats, in the units of the data.

        With ``dequantize`` it is the logarithm of the average density over the cell of the
        sample: plus the logarithms of the widths, the log-probability of the rounded sample.

        Args:
            X: ``(samples, columns)``.

        Returns:
            ``(samples,)``, float64.

        Raises:
            NotFittedError: Before ``fit``.
            ValueError: If X cannot be used; see the class.

        Example:
            >>> import numpy as np
            >>> from flowkit.estimators import FlowDensity
            >>> X = np.linspace(0, 1, 50)[:, None]
            >>> FlowDensity("elementwise_flow", epochs=1).fit(X).score_samples(X[:4]).shape
            (4,)
        """
        X = self._read(X, "score_samples")
        device = self.flow_.device
        parts = [
            cell_log_prob(self.flow_, torch.tensor(part, device=device), self.lattice_.width).cpu()
            for part in np.split(X, range(_SAMPLES_AT_ONCE, len(X), _SAMPLES_AT_ONCE))
        ]
        return torch.cat(parts).numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Compute the mean log-density of the samples, in nats; higher is better.

        A mean, as in :class:`sklearn.mixture.GaussianMixture`, so that folds of unequal size can
        be compared; :class:`sklearn.neighbors.KernelDensity` returns the total instead.

        Args:
            X: ``(samples, columns)``.
            y: Ignored; grid searches pass it.

        Example:
            >>> import numpy as np
            >>> from sklearn.model_selection import cross_val_score
            >>> from flowkit.estimators import FlowDensity
            >>> X = np.random.default_rng(0).normal(size=(60, 1))
            >>> cross_val_score(FlowDensity("elementwise_flow", epochs=1), X, cv=3).shape
            (3,)
        """
        return float(self.score_samples(X).mean())

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Draw samples from the fitted density.

        Args:
            n_samples: Number of samples, at least 1.
            random_state: As in the class: the same int gives the same samples; ``None`` gives
                others each time.

        Returns:
            ``(n_samples, columns)``, float64, in the units of the data; with ``dequantize``
            rounded to the values that the data can take.

        Raises:
            NotFittedError: Before ``fit``.
            ArgumentError: If ``n_samples`` is not an integer >= 1, or no random numbers follow
                from ``random_state``.
            NotInvertibleError: If the flow of the recipe cannot be sampled.

        Example:
            >>> import numpy as np
            >>> from flowkit.estimators import FlowDensity
            >>> X = np.linspace(0, 1, 50)[:, None]
            >>> model = FlowDensity("elementwise_flow", epochs=1).fit(X)
            >>> bool((model.sample(3, random_state=0) == model.sample(3, random_state=0)).all())
            True
        """
        check_is_fitted(self, "flow_")
        n = checks.integer("sample", "n_samples", n_samples, least=1)
        generator = torch.Generator(self.flow_.device)
        generator.manual_seed(seed_from("sample", random_state))
        sizes = (min(_SAMPLES_AT_ONCE, n - done) for done in range(0, n, _SAMPLES_AT_ONCE))
        drawn = torch.cat([self.flow_.sample(m, generator=generator).cpu() for m in sizes])
        return self.lattice_.round(drawn.numpy())
