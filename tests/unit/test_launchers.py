"""Launchers as data: the command lines of every file, what files and layouts are refused, what a sub-task inherits."""

import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from exex import cli
from exex.errors import ConfigError
from exex.launch.launchers import Layout, launcher_names, load_launcher
from exex.launch.layout import spell_hosts, spell_walltime
from exex.launch.toml_table import read_table
from exex.launch.word_lines import FLAGS, VALUES, parse_line
from exex.launch.world import expected_world, task_environment
from tests.unit import test_world as seen

OURS = {"HOME": "/nonexistent"}
NAMES = launcher_names(OURS)
FILES = {name: load_launcher(name, OURS) for name in NAMES}

# ---- command lines ----

HOSTS = ("nid00010", "nid00011", "nid00012")
JOB = ("nid00008", "nid00009", *HOSTS)
LAYOUTS = {
    "node": Layout(nodes=4, ranks_per_node=1, cores_per_rank=32),
    "core": Layout(nodes=2, ranks_per_node=4),
    "all": Layout(
        nodes=3, ranks_per_node=2, cores_per_rank=4, gpus_per_rank=1, hosts=HOSTS, threads_per_core=2,
        env={"A": "x,y z", "B": "$1"}, walltime_s=3600.5, allocation=JOB,
    ),
    "shared": Layout(nodes=2, ranks_per_node=2, cores_per_rank=2, hosts=HOSTS[:2], bind=False, allocation=JOB),
    "uneven": Layout(nodes=2, ranks_per_node=3, ranks=5),
}  # fmt: skip
GOLDEN = read_table("launchers.toml", (Path(__file__).parent / "launchers.toml").read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_command_lines(name, layout):
    golden = GOLDEN.table(name).table(layout)
    asked = LAYOUTS[layout]
    if name == "jsrun":
        asked = asked._replace(hosts=())
    assert shlex.join(FILES[name].world_argv(asked)) == golden.text("world")
    assert shlex.join(FILES[name].subtask_argv(asked)) == golden.text("subtask")


NODE_NAMES = st.integers(0, 99_999).map("nid{:05}".format)
WORDS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)


@st.composite
def layouts(draw):
    nodes, ranks_per_node = draw(st.integers(1, 40)), draw(st.integers(1, 130))
    hosts = draw(st.just(()) | st.lists(NODE_NAMES, min_size=nodes, max_size=nodes, unique=True).map(tuple))
    return Layout(
        nodes, ranks_per_node, draw(st.integers(1, 128)), draw(st.integers(0, 8)), hosts,
        draw(st.none() | st.integers(1, nodes * ranks_per_node)), draw(st.integers(1, 4)), draw(st.booleans()),
        draw(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), WORDS, max_size=3)),
        draw(st.none() | st.floats(0.001, 1e6)), hosts,
    )  # fmt: skip


@given(st.sampled_from(NAMES), layouts())
def test_whatever_is_asked_is_in_the_words_or_refused(name, layout):
    file = FILES[name]
    try:
        lines = [file.world_argv(layout), file.subtask_argv(layout)]
    except ConfigError as error:
        assert name in str(error)
        return
    for argv in lines:
        assert file.program in argv
        numbers = [word.rpartition("=")[2] for word in argv]
        assert str(layout.all_ranks) in numbers
        rest = list(argv)
        for variable, value in layout.env.items():
            for word in (variable, value) if name == "mpiexec-hydra" else (f"{variable}={value}",):
                rest.remove(word)  # as it is, and once
        assert not any("{" in word or "}" in word for word in rest)
        if layout.hosts and file.hosts != "offset":
            spelled = spell_hosts(name, layout, file.hosts)
            assert sum(word == spelled or word.endswith((f"={spelled}", f":{spelled}")) for word in rest) == 1


@given(st.lists(st.integers(0, 300), min_size=1, unique=True))
def test_ranges_of_nids_are_those_nids_in_their_order(nids):
    layout = Layout(len(nids), 1, hosts=tuple(f"nid{nid:05}" for nid in nids))
    expanded = []
    for part in spell_hosts("aprun", layout, "nids").split(","):
        first, _, last = part.partition("-")
        expanded += range(int(first), int(last or first) + 1)
    assert expanded == nids


@given(st.floats(0.001, 1e7))
def test_a_time_limit_is_rounded_up(walltime_s):
    hours, minutes, seconds = (int(number) for number in spell_walltime(walltime_s, "hh:mm:ss").split(":"))
    assert minutes < 60 and seconds < 60
    for limit_s, unit_s in [
        (int(spell_walltime(walltime_s, "seconds")), 1),
        (int(spell_walltime(walltime_s, "minutes")) * 60, 60),
        (hours * 3600 + minutes * 60 + seconds, 1),
    ]:
        assert limit_s - unit_s < walltime_s <= limit_s


REFUSED = [
    ("srun", Layout(0, 1), "nodes is 0; accepted: an integer, at least 1"),
    ("srun", Layout(1, 0), "ranks_per_node is 0"),
    ("srun", Layout(1, 1, 0), "cores_per_rank is 0"),
    ("srun", Layout(1, 1, 1, -1), "gpus_per_rank is -1"),
    ("srun", Layout(1, 1, threads_per_core=0), "threads_per_core is 0"),
    ("srun", Layout(1, 1, walltime_s=0.0), "walltime_s is 0.0"),
    ("srun", Layout(1, 1, walltime_s=float("inf")), "walltime_s is inf"),
    ("srun", Layout(2, 1, hosts=("a",)), "1 hosts for 2 nodes: a"),
    ("srun", Layout(2, 1, hosts=("a", "a")), "a host twice among a, a"),
    ("srun", Layout(1, 1, hosts=("a,b",)), "'a,b' is no host name"),
    ("srun", Layout(1, 1, hosts=("-w",)), "'-w' is no host name"),
    ("srun", Layout(1, 1, env={"A=B": "c"}), "the variable 'A=B' cannot be set to 'c'"),
    ("srun", Layout(1, 1, env={"A": "\0"}), "the variable 'A' cannot"),
    ("srun", Layout(2, 2, ranks=5), "5 ranks cannot be placed on 2 nodes with 2 on each; accepted: 2 to 4"),
    ("srun", Layout(3, 2, ranks=2), "accepted: 3 to 6"),
    ("aprun", Layout(3, 4, ranks=8), "8 ranks cannot be placed on 3 nodes with 4 on each; accepted: 9 to 12"),
    ("aprun", Layout(2, 1, hosts=("nid00012", "login1")), "the host login1 is no node number of ALPS, such as nid00012 or 12"),
    ("jsrun", Layout(1, 1, hosts=("a01n01",)), "jsrun has no words for hosts, which this launch asks for: "),
    ("ibrun", Layout(1, 1, hosts=("c1",)), "ibrun counts nodes, so it must know all nodes of the job"),
    ("ibrun", Layout(1, 1, hosts=("c9",), allocation=("c1", "c2")), "c9 is no node of the job, which has c1, c2"),
    ("ibrun", Layout(2, 1, hosts=("c1", "c3"), allocation=("c1", "c2", "c3")), "c1, c3 are not among c1, c2, c3"),
    ("ibrun", Layout(2, 1, hosts=("c2", "c1"), allocation=("c1", "c2", "c3")), "hosts must be neighbours in the job's order"),
]


@pytest.mark.parametrize("name, layout, message", REFUSED)
def test_layouts_that_are_refused(name, layout, message):
    for argv in (FILES[name].world_argv, FILES[name].subtask_argv):
        with pytest.raises(ConfigError) as caught:
            argv(layout)
        assert str(caught.value).startswith(name)
        assert message in str(caught.value)


# ---- what ranks see, what a sub-task inherits ----

RANKS = {
    "srun": [seen.SRUN_PMI2, seen.SRUN_PMIX, seen.SRUN_CRAY_SHASTA],
    "mpiexec-hydra": [seen.HYDRA, seen.HYDRA_INTEL, seen.HYDRA_IN_SLURM],
    "mpiexec-openmpi": [seen.OPENMPI_5, seen.OPENMPI_4],
    "mpiexec-pals": [seen.PALS],
    "aprun": [seen.ALPS],
    "jsrun": [seen.JSRUN],
    "flux": [seen.FLUX],
    "ibrun": [seen.HYDRA_INTEL],
}


@pytest.mark.parametrize("name", NAMES)
def test_the_world_is_recognised_by_the_name_in_the_file(name):
    assert {expected_world(rank).launcher for rank in RANKS[name]} == {FILES[name].world_is}


@pytest.mark.parametrize("name", NAMES)
def test_a_task_sees_no_variable_that_a_file_says_a_rank_sees(name):
    see = FILES[name].ranks_see
    assert see
    assert task_environment(dict.fromkeys(see, "1")) == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_names_what_tells_the_rank(name):
    for rank in RANKS[name]:
        without = {variable: value for variable, value in rank.items() if variable not in FILES[name].ranks_see}
        assert expected_world(without).launcher != FILES[name].world_is


@pytest.mark.parametrize("name", NAMES)
def test_the_launcher_of_a_subtask_inherits_nothing_of_the_world(name):
    file = FILES[name]
    for rank in RANKS[name]:
        env = file.nested_environment(task_environment(seen.USER | seen.SLURM_JOB | rank))
        ours = file.set | file.set_with.get("SLURM_JOB_ID", {})
        assert env.keys() >= ours.keys()
        own = {variable: value for variable, value in env.items() if variable not in ours.keys() - seen.USER.keys()}
        assert own.items() <= (seen.USER | seen.SLURM_JOB).items()
        assert seen.USER.items() <= own.items()
        assert "SLURM_JOB_ID" in own


def test_the_worlds_size_is_no_option_of_a_step():
    nodes = {"SLURM_NNODES": "4", "SLURM_TASKS_PER_NODE": "2(x4)"}
    step = {"SLURM_NTASKS": "8", "SLURM_CPUS_PER_TASK": "2", "SLURM_NTASKS_PER_NODE": "2"}
    kept = {"SLURM_JOB_ID": "5", "SLURM_CONF": "/etc/slurm.conf", "SLURM_MPI_TYPE": "pmi2", "PATH": "/bin"}
    set_for_hydra = {"SLURM_OVERLAP": "1", "SLURM_CPU_BIND": "none", "HYDRA_LAUNCHER": "slurm"}
    assert FILES["srun"].nested_environment(nodes | step | kept) == kept
    assert FILES["mpiexec-hydra"].nested_environment(nodes | step | kept) == nodes | kept | set_for_hydra


def test_elsewhere_nothing_of_slurm_is_set():
    for name in NAMES:
        assert FILES[name].nested_environment({"PATH": "/bin"}) == {"PATH": "/bin"}


# ---- this machine alone, going on after a loss ----


@pytest.mark.parametrize("name", [name for name in NAMES if not FILES[name].local_words])
def test_most_launchers_are_not_for_this_machine_alone(name):
    with pytest.raises(ConfigError, match=f"{name} is not for ranks on this machine alone"):
        FILES[name].local_argv(2, name, "1.0")


@pytest.mark.parametrize(
    "name, version, words",
    [
        ("mpiexec-openmpi", "mpiexec (Open MPI) 5.0.11", ["--with-ft", "ulfm"]),
        ("mpiexec-openmpi", "mpiexec (Open MPI) 10.1", ["--with-ft", "ulfm"]),
        ("mpiexec-openmpi", "mpiexec (OpenRTE) 4.1.4", []),
        ("mpiexec-openmpi", "unknown", []),
        ("mpiexec-hydra", "unknown", ["-disable-auto-cleanup"]),
        ("aprun", "6.6.57", []),
    ],
)
def test_words_that_let_a_job_go_on(name, version, words):
    assert FILES[name].goes_on_words(version) == words


# ---- files ----

SMALLEST = """
about = "a launcher"
program = "go"
tried = false
world_is = "PMI"
batch_systems = ["none"]
from_compute_nodes = true
room = "cores"
uneven = "no"
words = ["-n {ranks}"]
"""


@pytest.fixture
def user(tmp_path):
    """`user(name, text)` writes a file of the user's; the environment in which it is found."""

    def write(name, text):
        directory = tmp_path / "exex/launchers"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{name}.toml").write_text(text)
        return {"XDG_CONFIG_HOME": str(tmp_path)}

    return write


def test_a_file_of_the_users_is_a_launcher(user):
    env = user("go", SMALLEST)
    assert launcher_names(env) == sorted([*NAMES, "go"])
    go = load_launcher("go", env)
    assert go.world_argv(Layout(2, 3)) == go.subtask_argv(Layout(2, 3)) == ["go", "-n", "6"]
    assert load_launcher(go.path, OURS).name == "go"
    with pytest.raises(ConfigError, match="exactly 6"):
        go.world_argv(Layout(2, 3, ranks=5))
    for layout, field in [(Layout(1, 1, 2), "cores_per_rank"), (Layout(1, 1, env={"A": "1"}), "env")]:
        with pytest.raises(ConfigError, match=f"go has no words for {field}, .*go.toml does not use {{{field}}}"):
            go.world_argv(layout)


def test_a_file_of_the_users_replaces_ours(user):
    env = user("srun", SMALLEST)
    assert load_launcher("srun", env).program == "go"
    assert launcher_names(env) == NAMES


def test_words_are_split_and_quoted_as_in_a_shell(user):
    env = user("go", SMALLEST.replace('"-n {ranks}"', "\"-n {ranks} --say 'a {nodes} b' '{{x}}'\""))
    assert load_launcher("go", env).world_argv(Layout(2, 1)) == ["go", "-n", "2", "--say", "a 2 b", "{x}"]


def more(text):
    return SMALLEST + text


def words(*lines):
    return SMALLEST.replace('words = ["-n {ranks}"]', f"words = [{', '.join(lines)}]")


WRONG = [
    ("about", "is not TOML"),
    (SMALLEST.replace("program", "programm"), "the key 'program' is missing; it wants text"),
    (more("wrods = []"), "unknown key 'wrods'; the nearest is 'words'"),
    (more("[loss]\nnodes = true"), "unknown key 'loss.nodes'; the nearest is 'loss.node'"),
    (more("[local]\nwrods = []"), "unknown key 'local.wrods'; the nearest is 'local.words'"),
    (SMALLEST.replace("false", '"no"'), "tried is 'no'; accepted: true or false"),
    (SMALLEST.replace('"cores"', '"all"'), "room is 'all'; accepted: cores, free cores or nodes"),
    (SMALLEST.replace('"no"', '"maybe"'), "uneven is 'maybe'; accepted: no, packed or spread"),
    (SMALLEST.replace('["none"]', '["SLURM"]'), "batch_systems is ['SLURM']; accepted: a list of Slurm, PBS, Cobalt, LSF, Flux or none"),
    (SMALLEST.replace('["none"]', '"none"'), "batch_systems is 'none'; accepted: a list of"),
    (more('left_out = ["hosts"]'), "left_out is ['hosts']; accepted: a list of cores_per_rank, threads_per_core, gpus_per_rank or walltime"),
    (more('hosts = "names"'), "hosts is set, and {hosts} is not used in words"),
    (more('walltime = "seconds"'), "walltime is set, and {walltime} is not used in words"),
    (words('"-n {ranks}"', '"-w {hosts}"'), "hosts does not say how it is spelled, and {hosts} is used in words"),
    (words('"-n {ranks}"', '"-c {cpus_per_rank}"') + 'left_out = ["threads_per_core"]', "left_out has threads_per_core, for which there are words"),
    (words('"-N {nodes}"'), "words never says how many ranks: use {ranks}"),
    (words('"-n {rank}"'), "words, line 1 '-n {rank}' has a field that is none of program, nodes, ranks, "),
    (words('"-n {ranks:3}"'), "words, line 1 '-n {ranks:3}' has a field that is none of"),
    (words('"-n {ranks"'), "words, line 1 "),
    (words('"-n {ranks}"', "\"-x 'y\""), "words, line 2 No closing quotation"),
    (words('"-n {ranks}"', '""'), "words, line 2 a line without a word"),
    (words('"-n {ranks}"', "3"), "words, line 2 is 3; accepted: text, or a table"),
    (words('"-n {ranks} {goes_on}"'), "{goes_on} stands for several words, and must have a line of its own"),
    (words('"-n {ranks}"', '{ when = "bound", words = "-b" }'), "words, line 2 'bound' is no condition; there are world, subtask, bind, "),
    (words('"-n {ranks}"', '{ when = "bind", wrods = "-b" }'), "the key 'words, line 2.words' is missing"),
    (words('"-n {ranks}"', '{ words = "-b" }'), "the key 'words, line 2.when' is missing"),
    (words('"-n {ranks}"', '{ when = "bind", words = "-b", if = "x" }'), "unknown key 'words, line 2.if'"),
    (more('[loss]\nrank = true\nwords = "-K"'), 'words has no line "{goes_on}" for loss.words'),
    (words('"-n {ranks}"', '"{goes_on}"') + '[loss]\nwords = "-K"', "loss.words is set, but neither loss.rank nor loss.node is true"),
    (words('"-n {ranks}"', '"{goes_on}"') + '[loss]\nrank = true\nwords = "-K {ranks}"', "loss.words has the field {ranks}; accepted: words without fields"),
    (more('[loss]\nsince = "5"'), "loss.since is '5'; accepted: an integer, at least 0"),
    (more("[environment]\nset = { A = 1 }"), "environment.set is {'A': 1}; accepted: a table of names and texts"),
    (more("[environment.set_with]\nA = 1"), "environment.set_with.A is 1; accepted: a table of names and texts"),
    (more("[environment]\ndrop = [1]"), "environment.drop is [1]; accepted: a list of texts"),
    (more('[local]\nwords = ["-n {ranks} -w {hosts}"]'), "local.words has hosts; accepted: goes_on, program, ranks, and no condition"),
    (more('[local]\nwords = [{ when = "bind", words = "-b" }]'), "local.words has bind; accepted: "),
    (more('loss = "never"'), "loss is 'never'; accepted: a table"),
]  # fmt: skip


@pytest.mark.parametrize("text, message", WRONG)
def test_a_wrong_file_is_told_what_is_wrong(user, text, message):
    env = user("go", text)
    with pytest.raises(ConfigError) as caught:
        load_launcher("go", env)
    assert str(caught.value).startswith(f"{env['XDG_CONFIG_HOME']}/exex/launchers/go.toml")
    assert message in str(caught.value)


# ---- exex launchers ----


def exex(*words, **env):
    """`exex launchers` with these words."""
    return CliRunner(env=OURS | env).invoke(cli.main, ["launchers", *words])


def test_launchers_are_listed():
    done = exex()
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *NAMES]
    assert "goes on    goes on    yes" in next(line for line in lines if line.startswith("srun"))


def test_a_wrong_file_does_not_hide_the_others(user):
    done = exex(**user("go", "about"))
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()[:-1]] == ["name", *NAMES]
    assert "go.toml is not TOML" in done.output.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_launcher_is_shown_with_command_lines(name):
    done = exex("show", name)
    assert done.exit_code == 0
    assert FILES[name].text.rstrip() in done.output
    world, subtask = (line for line in done.output.splitlines()[-4:] if not line.startswith("#"))
    assert shlex.split(world)[-4:] == [Path(sys.executable).name, "-m", "exex.run", "workflow.py"]
    assert shlex.split(subtask)[-2:] == ["./solver", "input"]


def test_a_small_launcher_is_shown(user):
    done = exex("show", "go", **user("go", SMALLEST))
    assert done.output.splitlines()[-1] == "go -n 16 ./solver input"


def test_a_launcher_that_is_not_there_is_not_shown():
    done = exex("show", "srnu")
    assert done.exit_code == 2
    assert "exex launchers: there is no launcher 'srnu'; the nearest is 'srun'" in done.output


def test_a_launcher_that_is_not_there():
    with pytest.raises(ConfigError, match="there is no launcher 'srnu'; the nearest is 'srun'"):
        load_launcher("srnu", OURS)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_what_it_knows_and_from_where(name):
    assert FILES[name].text.startswith("# "), "a file begins with what it is for and where its words come from"
    assert FILES[name].tried or "guide" in FILES[name].text or "manual" in FILES[name].text or "(1)" in FILES[name].text


def test_every_condition_and_field_can_stand_in_a_line():
    for name in (*FLAGS, *VALUES):
        assert parse_line("-x", [name]).when == (name,)
        assert parse_line("-x", [f"not {name}"]).when == (f"not {name}",)
    for name in VALUES:
        assert parse_line(f"{{{name}}}").fields == {name}
