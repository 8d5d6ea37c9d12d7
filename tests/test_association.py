"""Mixed-model score tests against dense algebra and regression, the mice, and the study."""

import gzip
import math

import numpy as np
import pytest
import scipy.stats
import torch
from test_papers import load

from flowkit.datasets import heterogeneous_stock_mice
from flowkit.datasets.mice import DEBIAN_FOLDER
from flowkit.dependence import LinearMixedModel, rank_normalised
from flowkit.dependence.association import Association
from flowkit.errors import DataError, MissingDependencyError, ShapeError

N = 120


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def doses(rows, markers, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, (rows, markers), generator=generator).double()


def siblings(rows=N, size=4):
    block = torch.full((size, size), 0.5, dtype=torch.float64).fill_diagonal_(1.0)
    return torch.block_diag(*[block] * (rows // size))


def related(phenotypes, proportion=0.4, seed=0, rows=N):
    """Phenotypes of families, of a covariance with a known proportion."""
    root = torch.linalg.cholesky(
        proportion * torch.eye(rows).double() + (1 - proportion) * siblings(rows)
    )
    return root @ normal(rows, phenotypes, seed=seed)


def projection(proportion, kinship, design):
    """P of the dense covariance, and the covariance."""
    covariance = proportion * np.eye(len(kinship)) + (1 - proportion) * np.asarray(kinship)
    inverse = np.linalg.inv(covariance)
    middle = np.linalg.inv(design.T @ inverse @ design)
    return inverse - inverse @ design @ middle @ design.T @ inverse, covariance


def restricted(proportion, kinship, design, y):
    """-2 times the restricted log-likelihood with a free residual matrix, up to a constant."""
    p, covariance = projection(proportion, kinship, design)
    freedom = len(y) - design.shape[1]
    inner = design.T @ np.linalg.solve(covariance, design)
    columns = y.shape[1]
    log_dets = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(inner)[1]
    return freedom * np.linalg.slogdet(y.T @ p @ y)[1] + columns * log_dets


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_without_relatives_it_is_the_score_test_of_regression():
    covariates, markers, y = normal(N, 2, seed=1), doses(N, 7), normal(N, seed=2)
    tests = LinearMixedModel(torch.eye(N), covariates=covariates).score_test(y, markers)
    design = np.column_stack([np.ones(N), covariates])
    hat = np.eye(N) - design @ np.linalg.pinv(design)
    rest, left = hat @ y.numpy(), hat @ markers.numpy()
    variance = rest @ rest / (N - 3)
    expected = (left.T @ rest) ** 2 / (variance * (left**2).sum(0))
    assert tests.statistic.numpy() == pytest.approx(expected, abs=1e-8)
    assert tests.degrees == 1
    # With the marker among the covariates least squares have the same effect.
    full = np.column_stack([design, markers[:, 3]])
    assert tests.effect[3].item() == pytest.approx(
        np.linalg.lstsq(full, y.numpy(), rcond=None)[0][-1], abs=1e-8
    )


@pytest.mark.parametrize("phenotypes", [1, 3])
def test_statistics_are_those_of_dense_generalised_least_squares(phenotypes):
    kinship, covariates, markers = siblings(), normal(N, 2, seed=1), doses(N, 7)
    y = related(phenotypes)
    given = y[:, 0] if phenotypes == 1 else y
    model = LinearMixedModel(kinship, covariates=covariates)
    tests = model.score_test(given, markers)
    design = np.column_stack([np.ones(N), covariates])
    p, _ = projection(tests.residual_proportion, kinship, design)
    spread = y.numpy().T @ p @ y.numpy() / (N - 3)
    score = y.numpy().T @ p @ markers.numpy()
    square = np.einsum("im,ij,jm->m", markers.numpy(), p, markers.numpy())
    expected = np.einsum("jm,jk,km->m", score, np.linalg.inv(spread), score) / square
    assert tests.statistic.numpy() == pytest.approx(expected, abs=1e-8)
    assert tests.p_value.numpy() == pytest.approx(scipy.stats.chi2.sf(expected, phenotypes))
    assert tests.degrees == phenotypes
    effect = (score / square).T
    assert tests.effect.shape == ((7,) if phenotypes == 1 else (7, 3))
    assert tests.effect.numpy().reshape(7, -1) == pytest.approx(effect, abs=1e-8)
    # Chunks are only a matter of memory.
    assert torch.allclose(model.score_test(given, markers, chunk=2).statistic, tests.statistic)


@pytest.mark.parametrize("phenotypes", [1, 2])
def test_the_proportion_has_the_largest_restricted_likelihood(phenotypes):
    kinship, covariates, y = siblings(), normal(N, 1, seed=1), related(phenotypes, seed=3)
    design = np.column_stack([np.ones(N), covariates])
    proportion = (
        LinearMixedModel(kinship, covariates=covariates)
        .score_test(y, doses(N, 1))
        .residual_proportion
    )
    assert 0.01 < proportion < 0.99

    def value(at):
        return restricted(at, kinship, design, y.numpy())

    assert value(proportion) <= min(value(at) for at in np.linspace(1e-6, 1, 400)) + 1e-9
    slope = (value(proportion + 1e-4) - value(proportion - 1e-4)) / 2e-4
    curvature = (
        value(proportion + 1e-4) - 2 * value(proportion) + value(proportion - 1e-4)
    ) / 1e-8
    # A stationary point: the next Newton step is nothing.
    assert curvature > 0
    assert abs(slope / curvature) < 1e-4


def test_the_proportion_is_estimated_within_its_standard_error():
    rows = 1200
    y = related(2, proportion=0.4, rows=rows)
    values = torch.linalg.eigvalsh(siblings(rows))
    slope = (1 - values) / (0.4 + 0.6 * values)
    # Information of the proportion, with the variance profiled out.
    information = 2 / 2 * float((slope - slope.mean()).square().sum())
    proportion = LinearMixedModel(siblings(rows)).score_test(y, doses(rows, 1)).residual_proportion
    assert abs(proportion - 0.4) < 4 / math.sqrt(information)


def test_independent_phenotypes_reach_the_end():
    proportion = (
        LinearMixedModel(siblings()).score_test(normal(N, seed=9), doses(N, 1)).residual_proportion
    )
    mixed = related(1, proportion=0.0, seed=1)[:, 0]
    assert (
        1e-6
        <= LinearMixedModel(siblings()).score_test(mixed, doses(N, 1)).residual_proportion
        < 0.2
    )
    assert proportion <= 1.0


@pytest.mark.parametrize("phenotypes", [1, 2])
def test_p_values_without_an_association_are_uniform(phenotypes):
    rows, markers = 800, 1500
    # Markers of families, too: a model without kinship would fail.
    family = torch.arange(rows) // 4
    shared = doses(rows // 4, markers, seed=1)[family]
    own = doses(rows, markers, seed=2)
    tested = torch.where(normal(rows, markers, seed=3) > -1, shared, own)
    y = related(phenotypes, proportion=0.2, rows=rows, seed=4)
    tests = LinearMixedModel(siblings(rows)).score_test(y, tested)
    # Level 1e-3; the seed is fixed.
    assert scipy.stats.kstest(tests.p_value.numpy(), "uniform").pvalue > 1e-3
    # The standard error of a median, 1 / (2 density sqrt(n)), over it.
    median = scipy.stats.chi2.median(phenotypes)
    density = scipy.stats.chi2.pdf(median, phenotypes)
    error = 0.5 / (density * math.sqrt(markers) * median)
    assert abs(tests.genomic_control - 1) < 4 * error
    unrelated = LinearMixedModel(torch.eye(rows)).score_test(y, tested)
    assert unrelated.genomic_control - 1 > 4 * error


def test_linear_maps_of_phenotypes_change_nothing():
    y, markers = related(3), doses(N, 5)
    model = LinearMixedModel(siblings())
    tests = model.score_test(y, markers)
    mixing = torch.tensor([[1e3, 2.0, 0.0], [0.5, 1e-2, 1.0], [0.0, 3.0, 1e-3]]).double()
    mixed = model.score_test(y @ mixing + 7.0, markers)
    assert torch.allclose(mixed.statistic, tests.statistic, rtol=1e-6)
    assert torch.allclose(mixed.effect, tests.effect @ mixing, rtol=1e-5, atol=1e-8)
    assert mixed.residual_proportion == pytest.approx(tests.residual_proportion, abs=1e-5)


def test_scales_and_offsets_of_markers_and_covariates_do_not_matter():
    y, markers, covariates = related(1)[:, 0], doses(N, 5), normal(N, 2)
    tests = LinearMixedModel(siblings(), covariates=covariates).score_test(y, markers)
    other = LinearMixedModel(siblings(), covariates=1e6 * covariates + 1e3)
    scaled = other.score_test(y, 100 - 3 * markers)
    assert torch.allclose(scaled.statistic, tests.statistic, rtol=1e-6)
    assert torch.allclose(-3 * scaled.effect, tests.effect, rtol=1e-6)


def test_markers_that_do_not_vary_are_not_associated():
    covariates, y = normal(N, 1, seed=1), related(1)[:, 0]
    known = torch.cat([torch.ones(N, 1), 2 + 3 * covariates, doses(N, 1)], 1)
    tests = LinearMixedModel(siblings(), covariates=covariates).score_test(y, known)
    assert tests.statistic[:2].tolist() == [0.0, 0.0]
    assert tests.p_value[:2].tolist() == [1.0, 1.0]
    assert tests.effect[:2].tolist() == [0.0, 0.0]
    assert tests.statistic[2] > 0


def test_genomic_control_is_the_median_over_that_of_chi_square():
    quantiles = (torch.arange(1001).double() + 0.5) / 1001
    statistic = 1.3 * torch.from_numpy(scipy.stats.chi2.ppf(quantiles.numpy(), 2))
    tests = Association(statistic, 2, torch.zeros(1001, 2), 0.5)
    assert tests.genomic_control == pytest.approx(1.3)
    adjusted = tests.adjusted()
    assert torch.allclose(adjusted.statistic, statistic / 1.3)
    assert torch.allclose(adjusted.p_value, 1 - quantiles)
    # Statistics are never made larger.
    low = Association(statistic / 2, 2, torch.zeros(1001, 2), 0.5)
    assert torch.equal(low.adjusted().statistic, low.statistic)


def test_ranks_get_blom_scores_a_column():
    values = normal(50, 2).exp().round(decimals=1)
    scores = rank_normalised(values)
    for column, score in zip(values.T, scores.T, strict=True):
        ranks = scipy.stats.rankdata(column.numpy())
        assert score.numpy() == pytest.approx(scipy.stats.norm.ppf((ranks - 0.375) / 50.25))
    assert torch.equal(rank_normalised(values[:, 0]), scores[:, 0])
    # Monotone maps leave them, and a column without ties is nearly standard normal.
    distinct = normal(400)
    assert torch.equal(rank_normalised(distinct.exp()), rank_normalised(distinct))
    assert rank_normalised(distinct).std().item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: LinearMixedModel(torch.eye(4)[:3]), ShapeError, r"a square matrix \(n, n\)"),
        (
            lambda: LinearMixedModel(torch.eye(4) * math.nan),
            DataError,
            "a matrix of finite numbers",
        ),
        (lambda: LinearMixedModel(torch.ones(4, 4).triu()), DataError, "symmetric"),
        (lambda: LinearMixedModel(-torch.eye(4)), DataError, "semi-definite"),
        (
            lambda: LinearMixedModel(torch.eye(4), covariates=torch.ones(3, 1)),
            ShapeError,
            "covariates",
        ),
        (
            lambda: LinearMixedModel(torch.eye(4), covariates=torch.ones(4, 1)),
            DataError,
            "intercept",
        ),
        (
            lambda: LinearMixedModel(torch.eye(4), covariates=normal(4, 3)),
            DataError,
            "fewer covariates",
        ),
        (lambda: rank_normalised(torch.zeros(2, 2, 2)), ShapeError, "rank_normalised"),
        (
            lambda: rank_normalised(torch.tensor([1.0, math.nan])),
            DataError,
            "values of finite numbers",
        ),
    ],
)
def test_what_is_no_model_is_refused(build, error, match):
    with pytest.raises(error, match=match):
        build()


@pytest.mark.parametrize(
    ("phenotypes", "markers", "error", "match"),
    [
        (normal(3), doses(4, 2), ShapeError, "phenotypes"),
        (normal(4), doses(3, 2), ShapeError, "markers"),
        (normal(4), doses(4, 2)[:, 0], ShapeError, "markers"),
        (normal(4) * math.nan, doses(4, 2), DataError, "phenotypes of finite numbers"),
        (normal(4), doses(4, 2) * math.inf, DataError, "markers of finite numbers"),
        (torch.ones(4), doses(4, 2), DataError, "linearly independent"),
        (normal(4, 1).expand(4, 2), doses(4, 2), DataError, "linearly independent"),
        (normal(4, 4), doses(4, 2), DataError, "at most 3"),
    ],
)
def test_what_cannot_be_tested_is_refused(phenotypes, markers, error, match):
    with pytest.raises(error, match=match):
        LinearMixedModel(torch.eye(4)).score_test(phenotypes, markers)


FILES = {
    "geno": ["rs1, A, G, 0, 1, 2", "rs2, G, A, 0.5, NA, 1", "rs3, C, T, 1, 1, 1"],
    "pheno": ["0.1\tNA\t1\t0\tNA\t2", "NA\tNA\tNA\tNA\tNA\tNA", "1\t2\t3\t4\t5\t6"],
    "anno": ["rs2\tNA\tX\t3.0", "rs1\t100\t1\t0", "rs3\t200\t1\t0.1"],
    "fam": [f"f{i // 2} m{i} a b 1 0" for i in range(3)],
}


def written(folder, **changed):
    for name, lines in {**FILES, **changed}.items():
        ending = "fam.gz" if name == "fam" else f"{name}.txt.gz"
        with gzip.open(folder / f"mouse_hs1940.{ending}", "wt") as file:
            file.write("\n".join(lines) + "\n")
    return folder


def test_mice_are_read_as_the_files_have_them(tmp_path):
    mice = heterogeneous_stock_mice(written(tmp_path))
    # A missing dose is the mean of its marker.
    assert mice.genotypes.tolist() == [[0.0, 0.5, 1.0], [1.0, 0.75, 1.0], [2.0, 1.0, 1.0]]
    assert mice.phenotypes.shape == (3, 6)
    assert mice.phenotypes[0].isnan().tolist() == [False, True, False, False, True, False]
    assert mice.families == ("f0", "f0", "f1")
    assert mice.parents == (("a", "b"),) * 3
    # In the order of the genotypes, whatever that of the notes.
    assert mice.markers == ("rs1", "rs2", "rs3")
    assert mice.chromosomes == ("1", "X", "1")
    assert mice.positions[[0, 2]].tolist() == [100.0, 200.0]
    assert mice.positions[1].isnan()


def test_the_kinship_of_mice_is_a_correlation_of_standardised_markers(tmp_path):
    lines = [
        f"rs{i}, A, G, " + ", ".join(map(str, row))
        for i, row in enumerate(doses(9, 5).int().tolist())
    ]
    mice = heterogeneous_stock_mice(
        written(
            tmp_path,
            geno=lines,
            anno=[f"rs{i}\t1\t1\t0" for i in range(9)],
            pheno=["1 2 3 4 5 6"] * 5,
            fam=["f m a b 1 0"] * 5,
        )
    )
    table = mice.genotypes.double().numpy()
    table = table[:, table.std(0) > 0]
    z = (table - table.mean(0)) / table.std(0)
    dense = z @ z.T / z.shape[1]
    root = np.sqrt(np.diag(dense))
    assert mice.kinship().numpy() == pytest.approx(dense / np.outer(root, root), abs=1e-10)


@pytest.mark.parametrize(
    "changed",
    [
        {"geno": ["rs1, A, G, 0, 1", "rs2, G, A, 0.5, 1"]},
        {"geno": ["rs1, A, G, 0, 1, 2", "rs2, G, A, 0.5, 1"]},
        {"geno": ["rs1, A, G, 0, 1, few"]},
        {"anno": ["rs2\tNA\tX\t3.0"]},
        {"pheno": []},
    ],
)
def test_damaged_files_of_mice_are_refused(tmp_path, changed):
    with pytest.raises(DataError, match="heterogeneous_stock_mice expected"):
        heterogeneous_stock_mice(written(tmp_path, **changed))


def test_mice_name_the_package_that_has_them(tmp_path):
    with pytest.raises(MissingDependencyError, match="apt install gemma-doc"):
        heterogeneous_stock_mice(tmp_path)
    (written(tmp_path) / "mouse_hs1940.geno.txt.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot read"):
        heterogeneous_stock_mice(tmp_path)


@pytest.mark.skipif(
    not (DEBIAN_FOLDER / "mouse_hs1940.geno.txt.gz").exists(), reason="gemma-doc is not installed"
)
def test_the_mice_of_the_package_agree_with_its_own_analysis():
    mice = heterogeneous_stock_mice()
    assert mice.genotypes.shape == (1940, 12226)
    assert mice.phenotypes.isfinite().sum(0).tolist() == [1410, 757, 653, 757, 653, 1580]
    assert len(set(mice.families)) == 85
    # p-values and effects of Wald tests from demo.txt, of markers centred but not scaled.
    names = ("rs3683945", "rs3707673", "rs6269442", "rs6336442", "rs13475700")
    wald = [0.2087616, 0.2841271, 0.3204804, 0.2767540, 0.4304306]
    effects = [-0.07788665, -0.06654282, -0.05344241, -0.06769154, -0.05659089]
    centred = mice.genotypes.double() - mice.genotypes.double().mean(0)
    has = mice.phenotypes[:, 0].isfinite()
    model = LinearMixedModel((centred @ centred.mT / centred.shape[1])[has][:, has])
    columns = [mice.markers.index(name) for name in names]
    tests = model.score_test(mice.phenotypes[has, 0], mice.genotypes[has][:, columns])
    assert tests.p_value.tolist() == pytest.approx(wald, abs=2e-3)
    assert tests.effect.tolist() == pytest.approx(effects, rel=5e-3)


def test_the_study_counts_its_tests_and_resumes(tmp_path, capsys):
    script = load("association_study")
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    results = script.main(call)
    # Two replicates, five ways and the latents, two tests.
    assert len(results) == 2 * 6 * 2
    for r in results:
        assert r.null + r.causal == 300
        assert r.false[0] >= r.false[1]
        assert r.found[0] >= r.found[1]
    before = (tmp_path / "record").read_text()
    assert script.main(call) == results
    assert (tmp_path / "record").read_text() == before
    text = (tmp_path / "association_study.md").read_text()
    assert text.count("| together |") == text.count("| two |") == 6
    assert str(tmp_path) not in text


def test_the_study_passes_on_alleles_by_the_rules(tmp_path):
    script = load("association_study")
    rng = np.random.default_rng(0)
    tested, frequency, kinship = script.families(60, 4000, rng)
    standard = (tested.double() - 2 * frequency) / (2 * frequency * (1 - frequency)).sqrt()
    realised = standard @ standard.mT / 4000
    # Correlations of relatives over markers, on average over pairs.
    error = 4 / math.sqrt(4000)
    for value in (0.0, 0.5, 1.0):
        assert abs(realised[kinship == value].mean().item() - value) < error
    u = script.latents(tested, frequency, torch.arange(100), rng)
    assert u.shape == (len(tested), 2)
    x, slope = script.phenotypes(u)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: script.phenotypes(row[None])[0][0]))(
        u
    )
    assert torch.allclose(slope, torch.linalg.slogdet(jacobian)[1])


def test_folds_keep_families_whole():
    script = load("association_study")
    codes = tuple("aaaaabbbbccccdddeef")
    where = script.folds(codes, 3)
    assert all(
        len({w for c, w in zip(codes, where, strict=True) if c == f}) == 1 for f in "abcdef"
    )
    assert np.bincount(where).tolist() in ([6, 6, 7], [6, 7, 6], [7, 6, 6])
