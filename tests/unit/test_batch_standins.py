"""The stand-ins for batch systems refuse what the real ones do not know; every golden job script is one that they take."""

from __future__ import annotations

from pathlib import Path

import pytest

from exex.launch.machines import load_machine
from tests.standins import batch
from tests.standins.batch import SYSTEMS
from tests.unit.test_jobscript import GOLDEN, OF_MACHINES, OTHERS

MACHINE_OF = {**{name: name for name in OF_MACHINES}, **{name: machine for name, (machine, _) in OTHERS.items()}}
ASKED = {**OF_MACHINES, **{name: values for name, (_, values) in OTHERS.items()}}


@pytest.mark.parametrize("name", MACHINE_OF)
def test_golden_scripts_are_taken(tmp_path, name):
    script = tmp_path / "job.sh"
    script.write_text((GOLDEN / f"{name}.sh").read_text())
    script.chmod(0o755)
    machine = load_machine(MACHINE_OF[name], {"HOME": "/nobody"})
    asked = SYSTEMS[machine.batch_system].parse([str(script)])
    hours, minutes, *seconds = (int(part) for part in ASKED[name].get("walltime", "01:00:00").split(":"))
    walltime_s = hours * 3600 + minutes * 60 + seconds[0] if seconds else hours * 60 + minutes
    assert (asked.nodes, asked.walltime_s) == (int(ASKED[name]["nodes"]), walltime_s)
    assert asked.name == ASKED[name].get("name", "workflow")


REFUSED = [
    ("Slurm", "#SBATCH --nodse=2", [], "unrecognized option '--nodse=2'"),
    ("Slurm", "#SBATCH --nodes=two", [], "invalid value for --nodes=two: 'two'"),
    ("Slurm", "#SBATCH --time=soon", [], "invalid --time specification: 'soon'"),
    ("Slurm", "#SBATCH --signal=B:USR3@5", [], "Invalid --signal specification: B:USR3@5"),
    ("Slurm", "", ["--ntask=2"], "unrecognized option '--ntask=2'"),
    ("PBS", "#PBS -l select=2:ncpu=4", [], "Illegal chunk: ncpu=4"),
    ("PBS", "#PBS -l select=0", [], "invalid number of chunks: '0'"),
    ("PBS", "#PBS -l selct=2", [], "Unknown resource: selct"),
    ("PBS", "#PBS -l walltime=1h", [], "invalid walltime: '1h'"),
    ("PBS", "#PBS -l place=everywhere", [], "Illegal value for place: everywhere"),
    ("PBS", "#PBS -j both", [], "illegal -j value"),
    ("PBS", "#PBS -N 1st", [], "illegal -N value"),
    ("PBS", "", ["-v", "1A=2"], "invalid variable: 1A"),
    ("PBS", "", ["-l", "select=1", "job.sh", "word"], "script file: too many words"),
    ("Torque", "#PBS -l nodes=4:ppn=", [], "Illegal chunk: ppn="),
    ("Cobalt", "#COBALT -n 2", [], "'time' not provided"),
    ("Cobalt", "#COBALT -t 10", [], "'nodecount' not provided"),
    ("Cobalt", "# a comment\n#COBALT -n 2 -t 10", [], "#COBALT directives must stand together, from the second line on"),
    ("Cobalt", "#COBALT -n 2\n# a comment\n#COBALT -t 10", [], "#COBALT directives must stand together"),
    ("Cobalt", "#COBALT -n 2 -t 1:00", [], "invalid time: '1:00'"),
    ("Cobalt", "#COBALT -n 2 -t 10 --attrs mcdram", [], "invalid --attrs: mcdram"),
    ("LSF", "#BSUB -W 1:00", [], "Please specify -nnodes. Job not submitted."),
    ("LSF", "#BSUB -nnodes 2\n#BSUB -W 1:00:00", [], "invalid -W: '1:00:00'"),
    ("LSF", "#BSUB -nnodes 2\n#BSUB -alloc_flags \"smt3\"", [], "Unknown alloc_flag smt3"),
]  # fmt: skip


@pytest.mark.parametrize("system, directives, words, says", REFUSED)
def test_what_the_real_ones_do_not_know_is_refused(tmp_path, system, directives, words, says):
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n{directives}\n")
    script.chmod(0o755)
    argv = [str(script) if word == "job.sh" else word for word in words]
    argv = argv if "job.sh" in words else [*argv, str(script)]
    with pytest.raises(batch.Refused) as caught:
        SYSTEMS[system].parse(argv)
    assert says in str(caught.value)


def test_scripts_that_are_none(tmp_path):
    path = tmp_path / "job.sh"
    path.write_text("true\n")
    with pytest.raises(batch.Refused, match="does not look like a batch script"):
        batch.sbatch([str(path)])
    path.write_text("#!/bin/bash\n#COBALT -n 1 -t 10\n")
    with pytest.raises(batch.Refused, match="is not executable"):
        batch.cobalt([str(path)])
    with pytest.raises(batch.Refused, match="Unable to open file"):
        batch.bsub([str(tmp_path / "nothere.sh")])


def test_directives_after_a_command_do_not_count(tmp_path):
    path = Path(tmp_path / "job.sh")
    path.write_text("#!/bin/bash\n#SBATCH --nodes=2\n\n# words\ntrue\n#SBATCH --nodes=3\n")
    assert batch.sbatch([str(path)]).nodes == 2
    assert batch.sbatch(["--nodes=4", str(path)]).nodes == 4
