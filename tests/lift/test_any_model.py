"""Random models: each function computes the same on lifted weights, in every pipeline."""

import warnings

from hypothesis import assume, given, note
from hypothesis import strategies as st
from models import as_model, models, run_model
from pipelines import PIPELINES
from profiles import examples
from transforms import NOTES, without_what_fuse_tir_fails_at
from tvm import relax

from relax_inplace.transform import LiftInplaceTransformParams


def some_calls(call):
    """About half of them, whatever they are."""
    return len(str(call.op)) % 2 == 0


RULES = [{}, {}, {"skip": some_calls}, {"only": some_calls}, {"skip": "w0"}, {"only": ["w0", "w1"]}]


@examples(40, fuzz=2000)
@given(
    st.data(),
    st.sampled_from(sorted(PIPELINES)),
    st.sampled_from([None, 0.8, 1.0, 1.5]),
    st.booleans(),
    st.sampled_from(RULES),
)
def test_any_model(data, pipeline, max_resident, lazy, rules):
    before = as_model(data.draw(models(pipeline)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            lift = LiftInplaceTransformParams(max_resident=max_resident, lazy=lazy, **rules)
            after = lift(before)
        except ValueError as error:
            assume("even if nothing is lifted" not in str(error))
            raise
    note(f"{pipeline}\n{after}")
    relax.analysis.well_formed(after)
    NOTES.clear()
    with without_what_fuse_tir_fails_at():
        run_model(before, after, pipeline, lazy=lazy)
