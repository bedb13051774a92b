"""The result of ``partition_information``: two tables, as text and as data frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pyro_mixtures.diagnostics.text_tables import align_columns
from pyro_mixtures.errors import OptionError

if TYPE_CHECKING:
    from pandas import DataFrame

TABLES = ("variables", "dependences")


class VariableInformation(NamedTuple):
    """Mutual information of the labels z and one variable."""

    name: str
    kind: str  # "feature", "outcome", or "all features" together
    nats: float  # I(z; variable), not clipped: for independent variables it scatters around 0
    p_value: float | None  # of independence
    adjusted_p_value: float | None  # for all variables of the table (Benjamini & Hochberg)


class ClusterDependence(NamedTuple):
    """Dependence of the outcome on a feature within one cluster, and over all rows.

    Both are hypercontractivity coefficients.
    """

    feature: str
    cluster: int
    rows: int  # in the cluster
    within: float  # NaN if the feature or the outcome is constant in the cluster
    overall: float
    p_value: float | None  # of independence within the cluster; NaN if ``within`` is
    adjusted_p_value: float | None  # for all clusters and features (Benjamini & Hochberg)


@dataclass(frozen=True)
class PartitionInformation:
    """Result of :func:`partition_information`; it prints as two tables."""

    variables: list[VariableInformation]  # in descending order of their information
    dependences: list[ClusterDependence]  # by feature and cluster; empty without an outcome
    entropy: float  # of z in nats, an upper bound on each I(z; variable)
    rows: int  # from which each I(z; variable) was estimated

    def local_dependences(self, level: float = 0.05) -> list[ClusterDependence]:
        """Return the dependences that hold in some clusters only and are masked over all rows.

        These are significant in their cluster, stronger there than over all rows, and not
        significant in at least one other cluster. Not significant does not mean absent: the test in
        the other cluster may lack power. A cluster where the feature or the outcome is constant was
        not tested.

        :param level: significance level for the adjusted p-values.
        :returns: the dependences, in descending order of ``within - overall``.
        :raises OptionError: if no tests were made.

        >>> dependences = [
        ...     ClusterDependence("a", cluster, 90, 0.5, 0.2, p, p)
        ...     for cluster, p in ((0, 0.01), (1, 0.6))
        ... ]
        >>> information = PartitionInformation([], dependences, 0.7, 180)
        >>> [(d.feature, d.cluster) for d in information.local_dependences()]
        [('a', 0)]
        """
        tested: list[tuple[ClusterDependence, float]] = []
        for dependence in self.dependences:
            if dependence.adjusted_p_value is None:
                raise OptionError(
                    "no tests were made: pass permutations=199, for example, to "
                    "partition_information"
                )
            tested.append((dependence, dependence.adjusted_p_value))
        # NaN, which stands for no test, is neither significant nor insignificant.
        significant = [d for d, p in tested if p <= level]
        insignificant_features = {d.feature for d, p in tested if p > level}
        local = [
            d for d in significant if d.feature in insignificant_features and d.within > d.overall
        ]
        return sorted(local, key=lambda d: d.overall - d.within)

    def to_frame(self, table: str = "variables") -> "DataFrame":
        """Return one of the tables as a pandas data frame. Needs pandas.

        :param table: ``"variables"`` or ``"dependences"``.
        :returns: a data frame with one line per entry and the fields as columns.
        :raises OptionError: for another table.

        >>> line = VariableInformation("a", "feature", 0.5, None, None)
        >>> PartitionInformation([line], [], 0.7, 100).to_frame().shape
        (1, 5)
        """
        if table not in TABLES:
            raise OptionError(f"unknown table={table!r}: choose one of {TABLES}")
        from pandas import DataFrame  # slow to import, and needed here only

        if table == "variables":
            return DataFrame(self.variables, columns=list(VariableInformation._fields))
        return DataFrame(self.dependences, columns=list(ClusterDependence._fields))

    def __str__(self) -> str:
        title = f"I(z; variable) in nats, from {self.rows} rows; H(z) = {self.entropy:.3f}"
        text = [title, _table(VariableInformation._fields, self.variables)]
        if self.dependences:
            heading = (
                "Dependence of the outcome on features (hypercontractivity), within each cluster "
                "and overall"
            )
            text += ["", heading, _table(ClusterDependence._fields, self.dependences)]
        return "\n".join(text)


def _table(header: Sequence[str], lines: Sequence[tuple[Any, ...]]) -> str:
    return align_columns([header, *([_cell(value) for value in line] for line in lines)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
