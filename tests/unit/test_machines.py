"""Machine files: all of ours are sound, and whatever is wrong with one is told with its file and key."""

from __future__ import annotations

import pytest

from exex.errors import ConfigError
from exex.launch.launchers import load_launcher
from exex.launch.machine_text import machine_text, machines_table
from exex.launch.machines import Accelerators, load_machine, machine_names

NO_USER = {"HOME": "/nobody"}
OURS = machine_names(NO_USER)


@pytest.fixture
def machine(tmp_path):
    """`machine(text)` reads a machine file `made.toml` of the user; what every file needs is added."""
    folder = tmp_path / "exex" / "configs"
    folder.mkdir(parents=True)

    def make(text, head='description = "made"\nbatch_system = "Slurm"\nlauncher = "srun"\n'):
        (folder / "made.toml").write_text(head + text)
        return load_machine("made", {"XDG_CONFIG_HOME": str(tmp_path)})

    return make


# ---- ours ----


@pytest.mark.parametrize("name", OURS)
def test_a_file_of_ours_is_sound(name):
    found = load_machine(name, NO_USER)
    launcher = load_launcher(found.launcher, NO_USER)
    system = "none" if found.batch_system == "none" else found.system.variables
    assert system in launcher.batch_systems
    for queue in found.queues.values():
        assert queue.nodes_most is None or found.nodes is None or queue.nodes_most <= found.nodes
        steps = [limit_s for _, limit_s in queue.walltimes_s]
        assert steps == sorted(steps)
        assert not queue.walltimes_s or queue.walltimes_s[0][0] <= queue.nodes_least
    assert not found.queues or any(queue.default for queue in found.queues.values())
    assert "  " not in found.description and found.description in machine_text(found)


@pytest.mark.parametrize(
    "name, cores, usable, gib, devices",
    [
        ("blue-waters", 32, 32, 64, None),
        ("blue-waters-xk", 16, 16, 32, ("CUDA_VISIBLE_DEVICES", "0", "0", 1)),
        ("theta", 64, 64, 192, None),
        ("cori-haswell", 32, 32, 128, None),
        ("cori-knl", 68, 64, 96, None),
        ("perlmutter-cpu", 128, 128, 512, None),
        ("perlmutter-gpu", 64, 64, 256, ("CUDA_VISIBLE_DEVICES", "0", "3", 4)),
        ("polaris", 32, 32, 512, ("CUDA_VISIBLE_DEVICES", "0", "3", 4)),
        ("aurora", 104, 102, 1024, ("ZE_AFFINITY_MASK", "0.0", "5.1", 12)),
        ("frontier", 64, 56, 512, ("ROCR_VISIBLE_DEVICES", "0", "7", 8)),
        ("frontera", 56, 56, 192, None),
        ("summit", 44, 42, 512, ("CUDA_VISIBLE_DEVICES", "0", "5", 6)),
        ("stampede3", 48, 48, 192, None),
        ("midway", 48, 48, 192, None),
        ("comet", 24, 24, 128, None),
    ],
)
def test_shapes_of_real_machines(name, cores, usable, gib, devices):
    node = load_machine(name, NO_USER).node
    assert (node.cores, node.usable_cores, node.memory_bytes) == (cores, usable, gib * 1024**3)
    found = node.accelerators
    assert devices == (found and (found.variable, found.names[0], found.names[-1], len(found.names)))


def test_laptop_and_the_generic_ones_are_there():
    assert {"laptop", "slurm", "pbs", "cobalt"} <= set(OURS)


def test_the_table_has_a_line_for_each():
    head, *lines = machines_table(NO_USER).splitlines()
    assert [line.split()[0] for line in lines] == OURS
    assert head.startswith("machine ")
    assert "(until 2023)" in next(line for line in lines if line.startswith("theta "))


def test_the_text_shows_everything(machine):
    found = machine(
        """
        nodes = 2048
        retired = 2030
        request = ["--nodes={nodes}", "--exclusive"]
        directives = ["--constraint={feature}"]
        modules = ["python/3.12"]
        notes = ["a note"]
        site = { feature = "fast" }
        environment = { A = "1" }
        account = { required = true, example = "abc1" }
        node = { cores = 16, usable_cores = 15, threads_per_core = 2, memory_gib = 0.5, scratch = "/tmp/$USER" }
        accelerators = { kind = "GPU", names = ["a", "b"], variable = "MASK" }
        [queues.batch]
        default = true
        nodes_least = 2
        walltime_steps = [[2, "1:00:00"], [64, "1-00:00:00"]]
        [queues.debug]
        nodes_most = 1
        walltime_most = "30:00"
        chain = false
        node = { cores = 8 }
        [queues.wide]
        nodes_least = 4
        nodes_most = 1000
        """
    )
    assert machine_text(found).splitlines() == [
        "made: made",
        "",
        f"file          {found.path}",
        "batch system  Slurm",
        "launcher      srun",
        "retired       2030",
        "nodes         2,048",
        "cores         16, with 2 hardware threads each, 15 of them for jobs",
        "memory        0.5 GiB",
        "accelerators  2 x GPU: MASK=a,b",
        "own disk      /tmp/$USER",
        "account       needed, such as abc1",
        "",
        "queues",
        "  batch, the default  2 nodes or more  01:00:00; 24:00:00 from 64 nodes on",
        "  debug               1 node           00:30:00; no chains; cores 8, with 2 hardware threads each",
        "  wide                4 to 1000 nodes",
        "",
        "directives",
        "  --nodes={nodes}",
        "  --exclusive",
        "  --constraint={feature}",
        "",
        "site options (--site KEY=VALUE)",
        "  feature=fast",
        "",
        "modules",
        "  python/3.12",
        "",
        "environment",
        "  A=1",
        "",
        "notes",
        "  a note",
    ]


# ---- what queues inherit ----


def test_a_queue_goes_over_the_machine(machine):
    found = machine(
        """
        node = { cores = 16, usable_cores = 15, memory_gib = 64 }
        accelerators = { kind = "GPU", names = ["0"], variable = "MASK" }
        queues.plain = {}
        queues.big.node = { cores = 128, memory_gib = 1024 }
        queues.gpus.accelerators = { kind = "other", names = ["x", "y"], variable = "MASK2", by_launcher = true }
        """
    )
    plain, big, gpus = (found.queues[name].node for name in ("plain", "big", "gpus"))
    assert plain == found.node
    assert (big.cores, big.usable_cores, big.memory_bytes) == (128, 128, 1024**4)
    assert big.accelerators == found.node.accelerators
    assert gpus.accelerators == Accelerators("other", ("x", "y"), "MASK2", True)
    assert (gpus.cores, gpus.usable_cores) == (16, 15)


def test_how_a_queue_is_chosen(machine):
    found = machine('queue_option = "--qos={queue}"\nqueues.a = {}\nqueues.b.options = ["-p main", "-q b"]\n')
    assert found.queues["a"].options == ("--qos=a",)
    assert found.queues["b"].options == ("-p main", "-q b")


def test_limits_may_depend_on_the_nodes(machine):
    queue = machine('queues.q.walltime_steps = [[4, "1:00"], [8, "2:00"]]\nqueues.q.nodes_least = 4\n').queues["q"]
    assert [queue.walltime_most_s(nodes) for nodes in (4, 7, 8, 900)] == [60, 60, 120, 120]
    assert machine("queues.q = {}\n").queues["q"].walltime_most_s(5) is None


def test_queues_by_name(machine):
    found = machine("queues.short = {}\nqueues.long.default = true\n")
    assert found.queue(None) is found.queues["long"]
    assert found.queue("short") is found.queues["short"]
    with pytest.raises(ConfigError, match=r"made has no queue 'shrt'; the nearest is 'short'; all: short, long"):
        found.queue("shrt")


def test_where_none_is_listed_any_queue_will_do(machine):
    found = machine("")
    assert found.queue(None) is None
    assert found.queue("any").options == ("--partition=any",)
    with pytest.raises(ConfigError, match="--queue is 'a b', which is no name of a queue"):
        found.queue("a b")


# ---- files that cannot be used ----


@pytest.mark.parametrize(
    "text, says",
    [
        ("nodes = 3\nnode = 4\n", "node is 4; accepted: a table"),
        ("nodess = 3\n", "unknown key 'nodess'; the nearest is 'nodes'"),
        ("nodes = 0\n", "nodes is 0; accepted: an integer, at least 1"),
        ("nodes = true\n", "nodes is True; accepted: an integer, at least 1"),
        ("node.coers = 3\n", "unknown key 'node.coers'; the nearest is 'node.cores'"),
        ("node.cores = '3'\n", "node.cores is '3'; accepted: an integer, at least 1"),
        ("node = { cores = 4, usable_cores = 5 }\n", "node.usable_cores is 5; accepted: at most cores, 4"),
        ("node.usable_cores = 5\n", "node.usable_cores is 5; accepted: at most cores, None"),
        ("node.memory_gib = -1\n", "node.memory_gib is -1; accepted: a number above 0"),
        ("node.memory_gib = inf\n", "node.memory_gib is inf; accepted: a number above 0"),
        ("accelerators = {}\n", "the key 'accelerators.names' is missing"),
        ("accelerators.names = []\n", "accelerators.names is []; accepted: one name for each device"),
        ("accelerators.names = ['0', '0']\n", "accelerators.names is ['0', '0']; accepted: one name for each device"),
        (
            "accelerators = { names = ['0'], kind = 'k', variable = 'A B' }\n",
            "accelerators.variable is 'A B'; accepted: the name of a variable",
        ),
        (
            "accelerators = { names = ['0'], kind = 'k', variable = 'A', by = 1 }\n",
            "unknown key 'accelerators.by'; the nearest is 'accelerators.by_launcher'",
        ),
        ("account.pattern = '('\n", "account.pattern is '('; accepted: a regular expression"),
        ("account.need = true\n", "unknown key 'account.need'; the nearest is"),
        ("directives = ['--x={nodse}']\n", "directives is '--x={nodse}'; accepted in braces: nodes, ranks_per_node,"),
        ("directives = ['--x={']\n", "directives is '--x={': "),
        ('directives = ["a\\nb"]\n', "directives is ['a\\nb']; accepted: a list of texts of one line each"),
        ("directives = 'a'\n", "directives is 'a'; accepted: a list of texts of one line each"),
        ("queue_option = '-q {name}'\n", "queue_option is '-q {name}'; accepted in braces: queue"),
        ("site.nodes = 'x'\n", "site.nodes has a meaning of its own; choose another name"),
        ("site.a = 1\n", "site is {'a': 1}; accepted: text of one line"),
        ("environment = { 'A B' = 'x' }\n", "environment is {'A B': 'x'}; accepted: a table of names with texts"),
        ("queues.q = 3\n", "queues.q is 3; accepted: a table"),
        ("queues.'a b' = {}\n", "queues.a b is no name of a queue"),
        ("queues.q.nodes_mots = 3\n", "unknown key 'queues.q.nodes_mots'; the nearest is 'queues.q.nodes_most'"),
        ("queues.q = { nodes_least = 3, nodes_most = 2 }\n", "queues.q.nodes_most is 2; accepted: at least nodes_least, 3"),
        ("queues.q.walltime_most = 3600\n", "queues.q.walltime_most is 3600; accepted: a duration as text, such as"),
        ("queues.q.walltime_most = '1h'\n", "queues.q.walltime_most is '1h'; accepted: a duration as text, such as"),
        ("queues.q.walltime_steps = []\n", "queues.q.walltime_steps is []; accepted: a list of [nodes, \"HH:MM:SS\"]"),
        ("queues.q.walltime_steps = [[8, '1:00'], [4, '2:00']]\n", "; accepted: a list of [nodes, \"HH:MM:SS\"], by rising"),
        (
            "queues.q = { walltime_most = '1:00', walltime_steps = [[1, '1:00']] }\n",
            "queues.q.walltime_steps is set, and walltime_most, too",
        ),
        ("queues.q.site.a = 'x'\n", "queues.q.site.a is no key of the machine's own site table"),
        ("queues.q.node.coers = 3\n", "unknown key 'queues.q.node.coers'; the nearest is 'queues.q.node.cores'"),
        ("queues.a.default = true\nqueues.b.default = true\n", "queues.b is the default, and so is a"),
        ("launcher = 'twice'\n", "is not TOML: "),
    ],
)
def test_what_is_wrong_is_told(machine, tmp_path, text, says):
    with pytest.raises(ConfigError) as caught:
        machine(text)
    assert str(caught.value).startswith(f"{tmp_path}/exex/configs/made.toml")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "head, says",
    [
        ("", "the key 'batch_system' is missing; it wants Slurm, PBS, Torque, Cobalt, LSF or none"),
        ("batch_system = 'slurm'\n", "batch_system is 'slurm'; accepted: Slurm, PBS, Torque, Cobalt, LSF or none"),
        ("batch_system = 'PBS'\n", "the key 'description' is missing"),
        ("batch_system = 'PBS'\ndescription = 'd'\n", "the key 'launcher' is missing"),
        ("batch_system = 'PBS'\ndescription = ''\n", "description is ''; accepted: text of one line"),
    ],
)
def test_what_every_file_needs(machine, head, says):
    with pytest.raises(ConfigError) as caught:
        machine("", head)
    assert says in str(caught.value)


def test_a_machine_may_be_a_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('description = "d"\nbatch_system = "none"\nlauncher = "x"\n')
    found = load_machine(str(path), NO_USER)
    assert (found.name, found.path) == ("mine", str(path))
    with pytest.raises(ConfigError, match="mine has no batch system: start the job with `exex run`"):
        found.system


def test_an_unknown_machine_names_the_nearest():
    with pytest.raises(ConfigError, match="there is no machine 'teta'; the nearest is 'theta'"):
        load_machine("teta", NO_USER)
