"""Notes of shared memory: for `exex run` on this node, and for nobody else."""

from __future__ import annotations

import os

from exex.launch.leftovers import note_shared_memory


def test_exex_run_is_told(tmp_path):
    (tmp_path / "job.sock").touch()
    note_shared_memory({"EXEX_JOB_DIR": str(tmp_path)}, ["/dev/shm/a", "/dev/shm/b"])
    assert (tmp_path / f"shared.{os.getpid()}").read_text() == "/dev/shm/a\n/dev/shm/b"


def test_a_job_script_gets_no_file_for_each_rank(tmp_path):
    note_shared_memory({"EXEX_JOB_DIR": str(tmp_path)}, ["/dev/shm/a"])
    note_shared_memory({"EXEX_JOB_DIR": str(tmp_path / "elsewhere")}, ["/dev/shm/a"])
    note_shared_memory({}, ["/dev/shm/a"])
    assert os.listdir(tmp_path) == []
