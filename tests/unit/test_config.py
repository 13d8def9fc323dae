"""Settings: where they come from, which source wins, and what every mistake is told."""

import dataclasses

import pytest

from exex.config import INTERNAL_VARIABLES, Config
from exex.errors import ConfigError

FIELDS = [field.name for field in dataclasses.fields(Config)]

# name, as text, in TOML, as the field holds it
VALUES = [
    ("slots", "4", "4", 4),
    ("slots", "auto", '"auto"', "auto"),
    ("isolation", "none", '"none"', "none"),
    ("preload", "numpy, scipy.stats", '["numpy", "scipy.stats"]', ("numpy", "scipy.stats")),
    ("preload", "", "[]", ()),
    ("stage", "env.tar.zst", '"env.tar.zst"', "env.tar.zst"),
    ("stage_file", "/a/b,c:d", '["/a/b", "c:d"]', ("/a/b", "c:d")),
    ("stage_dir", "/local", '"/local"', "/local"),
    ("keep_bytes", "0", "0", 0),
    ("store_bytes", "1000000", "1000000", 1_000_000),
    ("store_bytes", "auto", '"auto"', "auto"),
    ("store_dir", "/local", '"/local"', "/local"),
    ("retries", "3", "3", 3),
    ("start_timeout_s", "90", "90", 90.0),
    ("stop_timeout_s", "0.5", "0.5", 0.5),
    ("grace_s", "0", "0", 0.0),
    ("progress", "yes", "true", True),
    ("progress", "0", "false", False),
    ("tasks_per_process", "100", "100", 100),
    ("tasks_per_process", "unlimited", '"unlimited"', "unlimited"),
    ("run_dir", "/scratch/run", '"/scratch/run"', "/scratch/run"),
    ("max_waiting", "10", "10", 10),
    ("max_waiting", "auto", '"auto"', "auto"),
    ("max_waiting_bytes", "1048576", "1048576", 1 << 20),
    ("prefetch_s", "1e-3", "1e-3", 0.001),
]

# name, as text, in TOML, what the message says is accepted
WRONG = [
    ("slots", "0", "0", "an integer, at least 1, or auto"),
    ("slots", "two", '"two"', "an integer, at least 1, or auto"),
    ("slots", "1.5", "1.5", "an integer, at least 1, or auto"),
    ("slots", "true", "true", "an integer, at least 1, or auto"),
    ("isolation", "thread", '"thread"', "process or none"),
    ("isolation", "1", "1", "process or none"),
    ("retries", "-1", "-1", "an integer, at least 0"),
    ("retries", "auto", '"auto"', "an integer, at least 0"),
    ("start_timeout_s", "0", "0", "a number, at least 0.1"),
    ("stop_timeout_s", "inf", "inf", "a number, at least 0.1"),
    ("grace_s", "nan", "nan", "a number, at least 0"),
    ("progress", "maybe", '"maybe"', "true or false"),
    ("progress", "2", "1", "true or false"),
    ("tasks_per_process", "0", "0", "an integer, at least 1, or unlimited"),
    ("run_dir", "", '""', "text"),
    ("max_waiting", "0", "0", "an integer, at least 1, or auto"),
]


@pytest.fixture
def write(tmp_path):
    """Writes a configuration file; its path."""

    def write(text):
        path = tmp_path / "settings.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_defaults():
    assert Config.load(None, {}, {}) == Config()
    assert Config() == Config(
        slots="auto",
        isolation="process",
        preload=(),
        retries=0,
        start_timeout_s=60.0,
        stop_timeout_s=10.0,
        grace_s=2.0,
        progress=False,
        tasks_per_process="unlimited",
        run_dir="runinfo",
        max_waiting="auto",
        max_waiting_bytes=2 << 30,
        prefetch_s=0.005,
    )


@pytest.mark.parametrize("name, text, toml, value", VALUES)
def test_every_source_gives_the_same_value(write, name, text, toml, value):
    expected = dataclasses.replace(Config(), **{name: value})
    loaded = [
        Config.load(write(f"{name} = {toml}\n"), {}, {}),
        Config.load(None, {"EXEX_" + name.upper(): text}, {}),
        Config.load(None, {}, {name: text}),
        Config.load(None, {}, {name: value}),
    ]
    assert loaded == [expected] * 4
    assert {type(getattr(config, name)) for config in loaded} == {type(value)}


@pytest.mark.parametrize("name, text, toml, accepted", WRONG)
def test_wrong_values_name_key_source_and_what_is_accepted(write, name, text, toml, accepted):
    path = write(f"{name} = {toml}\n")
    sources = [
        ((path, {}, {}), f"{path}: {name} is "),
        ((None, {"EXEX_" + name.upper(): text}, {}), f"EXEX_{name.upper()} is "),
        ((None, {}, {name: text}), f"--{name.replace('_', '-')} is "),
    ]
    for arguments, begins in sources:
        with pytest.raises(ConfigError) as caught:
            Config.load(*arguments)
        assert str(caught.value).startswith(begins)
        assert str(caught.value).endswith(f"; accepted: {accepted}")


def test_later_sources_win(write):
    path = write('retries = 1\ngrace_s = 1\nrun_dir = "file"\n')
    env = {"EXEX_RETRIES": "2", "EXEX_GRACE_S": "2"}
    config = Config.load(path, env, {"retries": "3", "grace_s": None})
    assert (config.retries, config.grace_s, config.run_dir) == (3, 2.0, "file")


def test_the_file_is_the_named_one_or_that_of_the_variable(write, tmp_path, monkeypatch):
    path = write("retries = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("retries = 2\n")
    (tmp_path / "exex.toml").write_text("retries = 3\n")
    monkeypatch.chdir(tmp_path)
    assert Config.load(None, {}, {}).retries == 0
    assert Config.load(None, {"EXEX_CONFIG": path}, {}).retries == 1
    assert Config.load(str(other), {"EXEX_CONFIG": path}, {}).retries == 2


@pytest.mark.parametrize(
    "wrong, nearest",
    [("retry", "retries"), ("start_timeout", "start_timeout_s"), ("max_wating", "max_waiting"), ("log", "slots")],
)
def test_unknown_keys_name_the_nearest(write, wrong, nearest):
    path = write(f"{wrong} = 1\n")
    for arguments, message in [
        ((path, {}, {}), f"{path}: unknown key '{wrong}'; the nearest is {nearest}"),
        (
            (None, {"EXEX_" + wrong.upper(): "1"}, {}),
            f"unknown variable EXEX_{wrong.upper()}; the nearest is EXEX_{nearest.upper()}",
        ),
        ((None, {}, {wrong: "1"}), f"unknown option --{wrong.replace('_', '-')}; the nearest is --{nearest.replace('_', '-')}"),
    ]:
        with pytest.raises(ConfigError) as caught:
            Config.load(*arguments)
        assert str(caught.value) == message


def test_a_table_in_the_file_is_an_unknown_key(write):
    with pytest.raises(ConfigError, match="unknown key 'worker'"):
        Config.load(write("[worker]\nslots = 1\n"), {}, {})


def test_internal_and_foreign_variables_are_passed_over():
    env = {name: "x" for name in INTERNAL_VARIABLES if name != "EXEX_CONFIG"}
    assert Config.load(None, {**env, "PATH": "/bin", "XEXEX_RETRIES": "7", "EXEXRETRIES": "7"}, {}) == Config()


@pytest.mark.parametrize("content, says", [("retries = \n", "is not TOML"), (b"run_dir = '\xff'", "is not TOML")])
def test_a_file_that_is_not_toml(tmp_path, content, says):
    path = tmp_path / "settings.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        Config.load(str(path), {}, {})
    assert str(caught.value).startswith(f"{path} {says}")


def test_a_file_that_is_not_there(tmp_path):
    path = str(tmp_path / "no.toml")
    with pytest.raises(ConfigError, match="No such file") as caught:
        Config.load(path, {}, {})
    assert path in str(caught.value)


def test_help_covers_every_field_and_names_its_default():
    rows = Config.fields_help()
    assert [row.name for row in rows] == FIELDS
    for row in rows:
        assert row.option == "--" + row.name.replace("_", "-")
        assert row.variable == "EXEX_" + row.name.upper()
        assert row.variable not in INTERNAL_VARIABLES
        assert (row.metavar == "") == (row.kind == "bool")
    defaults = "auto auto auto auto auto auto process none none none auto none run 65536 auto auto 0 60 10 auto 20 2 no 10 120 no unlimited runinfo auto inherit 1048576 auto 2147483648 auto 0.005 none no task_exit 60 268435456 none none none 60 268435456".split()
    assert [row.help.rpartition(" Default: ")[2] for row in rows] == [f"{default}." for default in defaults]


def test_help_shows_choices_in_place_of_a_type():
    assert {row.name: row.metavar for row in Config.fields_help() if "|" in row.metavar} == {
        "slots": "N|auto",
        "manager_slots": "N|auto",
        "bind": "auto|cores|none",
        "isolation": "process|none",
        "store_bytes": "N|auto",
        "tasks_per_process": "N|unlimited",
        "output": "inherit|files",
        "max_waiting": "N|auto",
        "max_parents": "N|auto",
        "checkpoint_mode": "task_exit|periodic|dfk_exit|manual",
    }


def test_stage_needs_task_processes():
    with pytest.raises(ConfigError, match="--stage needs --isolation process"):
        Config.load(None, {}, {"stage": "env.tar", "isolation": "none"})
    assert Config.load(None, {}, {"stage_file": "a", "isolation": "none"}).stage_file == ("a",)


def test_resume_needs_a_journal():
    with pytest.raises(ConfigError, match="--resume needs --journal FILE"):
        Config.load(None, {"EXEX_RESUME": "1"}, {})
    assert Config.load(None, {"EXEX_JOURNAL": "j"}, {"resume": True}).resume


def test_a_config_is_a_frozen_hashable_value():
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.retries = 1  # type: ignore[misc]
    assert hash(config) == hash(Config()) and not hasattr(config, "__dict__")
