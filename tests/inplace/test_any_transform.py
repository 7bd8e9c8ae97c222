"""Random transforms: the same bits in place as out of place, and the plan is what happens."""

from hypothesis import given, note
from hypothesis import strategies as st
from lowered_machine import LoweredMachine, lowered
from pipelines import IS_FUSED, PIPELINES
from profiles import examples
from transforms import (
    NOTES,
    SIZES,
    check_slots,
    run_both,
    transforms,
    without_what_fuse_tir_fails_at,
    without_what_is_refused,
)
from tvm import relax
from tvm.script import from_source

from relax_inplace.analysis import plan_memory, plan_storage
from relax_inplace.inplace.read_transform import read_transform
from relax_inplace.inplace.schedule import plan_graph
from relax_inplace.inplace.steps import Load
from relax_inplace.transform import InplaceTransformParams

INPLACE = "inplace_transform_params"


def check_loads(mod):
    """Each is followed by a step that waits for it, or by loads only."""
    graph = read_transform("transform_params", mod["transform_params"], mod, lazy=True)
    steps = plan_graph(graph).steps
    for position, load in enumerate(steps):
        if isinstance(load, Load):
            following = [step for step in steps[position:] if not isinstance(step, Load)]
            between = steps[position : steps.index(following[0]) if following else None]
            assert not following or any(load in step.after for step in (*between, following[0]))


def check_donation(mod, fuses):
    """Never a higher peak for it, nor more allocations; and the plan is what happens."""
    planned = plan_storage(mod, "llvm", fused=fuses).peak
    mods = [lowered(mod, donates=donates, fuses=fuses) for donates in (False, True)]
    for branch in (0, 1):
        without, donated = (LoweredMachine(m, INPLACE, SIZES, branch) for m in mods)
        note(f"without donation {without.peak} {without.allocated}, with {donated.peak}")
        assert donated.peak <= without.peak
        assert len(donated.allocated) <= len(without.allocated)
        if isinstance(planned, int):
            assert donated.peak <= planned


@examples(60)
@given(transforms(), st.sampled_from(sorted(PIPELINES)), st.booleans(), st.booleans())
def test_any_transform(transform, pipeline, streamed, is_measured):
    params = None if streamed else transform.params
    before = from_source(transform.source)
    with without_what_is_refused():
        after = InplaceTransformParams(params=params, lazy=streamed)(before)
    note(f"{pipeline}\n{after}")
    relax.analysis.well_formed(after)
    NOTES.clear()
    with without_what_fuse_tir_fails_at():
        run = run_both(before, after, pipeline, streamed=streamed)
    half = len(NOTES) // 2
    assert NOTES[:half] == NOTES[half:]
    if not streamed:
        check_slots(run, params)
    if not is_measured:
        check_donation(after, IS_FUSED[pipeline] is not False)
    elif IS_FUSED[pipeline] is not None:
        plan = plan_memory(
            before["transform_params"],
            before,
            params=params,
            lazy=streamed,
            fused=IS_FUSED[pipeline],
            tir_var_upper_bound=SIZES,
        )
        note(f"measured {run.peak}\n{plan}")
        if streamed:
            check_loads(before)
            loaded = [w for w in plan.weights if w.loaded_by is not None]
            in_order = sorted(loaded, key=lambda weight: weight.loaded_by)
            assert run.asked == [plan.weights.index(weight) for weight in in_order]
        if transform.is_exact:
            assert run.peak == plan.peak
        elif isinstance(plan.peak, int):
            assert run.peak <= plan.peak


MOVES = ["permute", "permute", "reshape", "concat", "split", "alias", "tuple", "unary"]


@examples(60)
@given(transforms(kinds=MOVES), st.sampled_from(sorted(PIPELINES)), st.booleans())
def test_weights_that_are_moved_from_their_files(transform, pipeline, streamed):
    before = from_source(transform.source)
    with without_what_is_refused():
        after = InplaceTransformParams(lazy=streamed)(before)
    note(f"{pipeline}\n{after}")
    with without_what_fuse_tir_fails_at():
        run_both(before, after, pipeline, streamed=streamed)
