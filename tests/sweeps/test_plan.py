"""Plans: what may share a program does, and nothing else."""

import json

import pytest

from mtjax import options
from mtjax.sweeps import plan
from mtjax.training import packing
from mtjax.training.config import RunConfig

VMAPPED = ("learning_rate", "entropy_cost")


def facts(config):
    return plan.Facts(config.total_steps, VMAPPED, packable=not config.suite.startswith("metaworld"))


def make(*changes, most_rows=64, slots=1, base=None):
    base = base or RunConfig(total_steps=100)
    trials = [(change, options.replace(base, change)) for change in changes]
    return plan.make_plan("s", trials, facts, most_rows=most_rows, slots=slots, process={"video": False})


def packs(made):
    return [program.trials for program in made.programs.values()]


RATES = [{"grads": g, "learning_rate": lr} for g in ("mean", "pcgrad") for lr in (1e-4, 1e-3, 1e-2)]


def test_numbers_of_the_state_are_rows_and_code_is_another_program():
    made = make(*RATES)
    names = list(made.trials)
    assert names[0] == "001_grads=mean_learning_rate=0.0001"
    assert packs(made) == [tuple(names[:3]), tuple(names[3:])]
    assert made.swept == ("grads", "learning_rate") and made.packed == ("learning_rate",)
    assert [made.steps(program) for program in made.programs.values()] == [300, 300]


def test_constants_of_a_gradient_method_are_rows():
    """CAGrad's c makes no program of its own; the plan says what of --sweep=grads does."""

    def known(config):
        return plan.Facts(100, VMAPPED, code=packing.method_code(options.flatten(config)))

    specs = ("mean", "cagrad(c=0.2)", "cagrad(c=0.4)", "cagrad(c=0.4, rescale='1+c')", "cagrad(c=0.6)")
    base = RunConfig(total_steps=100)
    trials = [({"grads": spec}, options.replace(base, {"grads": spec})) for spec in specs]
    made = plan.make_plan("s", trials, known, most_rows=64)
    found = [[made.trials[name].changes["grads"] for name in names] for names in packs(made)]
    assert found == [["mean"], ["cagrad(c=0.2)", "cagrad(c=0.4)", "cagrad(c=0.6)"], ["cagrad(c=0.4, rescale='1+c')"]]
    assert made.packed == ("grads",)
    for names in packs(made):
        packing.pack({name: made.trials[name].config for name in names}, VMAPPED)  # as the program will


def test_seeds_count_as_rows():
    """The limit is of agents, which is what memory depends on."""
    base = RunConfig(total_steps=100, num_seeds=4)
    made = make(*RATES, most_rows=8, base=base)
    assert [made.rows(program) for program in made.programs.values()] == [8, 4, 8, 4]
    made = make(*RATES, most_rows=3, base=base)
    assert len(made.programs) == 6 and made.packed == ()
    assert made.steps(made.programs["p001"]) == 400


def test_replays_have_room():
    """A pack of agents with large replays must not be refused when it starts."""
    base = RunConfig(total_steps=100)
    trials = [(change, options.replace(base, change)) for change in RATES]

    def facts_with_room(config):
        return plan.Facts(1, VMAPPED, most_rows=2)

    made = plan.make_plan("s", trials, facts_with_room, most_rows=64)
    assert sorted(map(len, packs(made))) == [1, 1, 2, 2]


def test_packing_can_be_switched_off():
    made = make(*RATES, most_rows=1)
    assert len(made.programs) == 6 and made.packed == ()


def test_no_slot_is_left_without_a_program():
    assert sorted(map(len, packs(make(*RATES, slots=4)))) == [1, 1, 2, 2]
    assert len(packs(make(*RATES, slots=99))) == 6


def test_simulators_on_the_host_are_not_packed():
    base = RunConfig(total_steps=100, suite="metaworld-mt10")
    assert len(make(*RATES, base=base).programs) == 6


def test_the_same_trial_twice():
    with pytest.raises(ValueError, match="001_seed=0 and 002_seed=0 are the same"):
        make({"seed": 0}, {"seed": 0})


def test_names_are_folder_names():
    made = make({"grads": "cagrad(c=0.1, rescale=None)"}, {"grads": "x/../y"}, {"hidden_sizes": (64, 64)}, {})
    assert list(made.trials) == [
        "001_grads=cagrad-c=0.1-rescale=None",
        "002_grads=x-..-y",
        "003_hidden_sizes=64x64",
        "004",
    ]


def test_a_plan_survives_its_file(tmp_path):
    made = make(*RATES, {"hidden_sizes": (8,)})
    plan.save(made, tmp_path)
    assert plan.load(tmp_path) == made


@pytest.mark.parametrize("content", ["{}", "[]", '{"trials": 1}', "{"])
def test_a_file_that_is_no_plan(tmp_path, content):
    (tmp_path / plan.MANIFEST).write_text(content)
    with pytest.raises(ValueError, match="sweep.json cannot be read"):
        plan.load(tmp_path)
    with pytest.raises(ValueError, match="is not a sweep: there is no such folder"):
        plan.load(tmp_path / "nowhere")


def test_the_id_is_of_everything_that_decides_the_result():
    made = make({"seed": 0}, {"seed": 1})
    first, second = made.trials.values()
    assert first.id != second.id
    assert first.id == plan.Trial("other name", {}, first.config).id
    json.dumps(made.process)


def test_rows_of_a_plan_are_rows_of_training():
    """The planner imports no jax; it must agree with the module that does the packing."""
    made = make(*RATES)
    for program in made.programs.values():
        packing.pack({name: made.trials[name].config for name in program.trials}, VMAPPED)
