"""What hypothesis draws for the tests of the search."""

from hypothesis import assume
from hypothesis import strategies as st

from phenoscape_tune.search.parameter import Parameter


@st.composite
def ranges(draw: st.DrawFn, fractions_in_steps: bool = True) -> Parameter:
    """A range of any type."""
    kind = draw(st.sampled_from(["uniform", "loguniform", "int", "logint", "choice"]))
    if kind == "choice":
        values = draw(st.lists(st.integers(-9, 9) | st.sampled_from(["a", "b", None, 0.5]), min_size=1, unique=True))
        return Parameter(type="choice", values=values)
    if kind in ("int", "logint"):
        first = draw(st.integers(1 if kind == "logint" else -50, 1000))
        length = draw(st.integers(1, 2000))
        whole = draw(st.none() | st.integers(1, length)) if kind == "int" else None
        return Parameter(type=kind, low=first, high=first + length, step=whole)
    low = draw(st.floats(1e-7, 1) if kind == "loguniform" else st.floats(-10, 10))
    high = low + draw(st.floats(1e-6, 100))
    assume(high > low)
    if not fractions_in_steps or kind == "loguniform":
        return Parameter(type=kind, low=low, high=high)
    step = draw(st.none() | st.floats(0.05, 1).map(lambda share: share * (high - low)))
    return Parameter(type=kind, low=low, high=high, step=step)


def stops_within(reports: int, most: int = 3, first: int = 1) -> st.SearchStrategy[list[int]]:
    """After how many reports a search of so many is stopped: one to `most` times, in rising order."""
    return st.lists(st.integers(first, reports - 1), min_size=1, max_size=most, unique=True).map(sorted)
