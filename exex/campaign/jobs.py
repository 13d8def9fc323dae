"""The jobs of a campaign: scripts, handing them to the batch system a few at a time, how they stand."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from exex.campaign.plan import Campaign, Point, make_job
from exex.errors import ConfigError
from exex.launch.batch import clock
from exex.launch.machines import load_machine
from exex.launch.submit import Answer, ask, make_script, submit

QUEUES: dict[str, tuple[str, ...]] = {
    "Slurm": ("squeue", "--noheader", "--format=%i", "--jobs={id}"),
    "PBS": ("qstat", "{id}"),
    "Torque": ("qstat", "{id}"),
    "Cobalt": ("qstat", "{id}"),
    "LSF": ("bjobs", "-noheader", "-o", "jobid stat", "{id}"),
}
"""What tells whether a job is queued or running: its number is in the answer, without a word of `_ENDED`."""

_ENDED = re.compile(r"\b(DONE|EXIT)\b|\sC\s")
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.5, 30.0  # between two questions to the batch system, while nothing changes

Ask = Callable[[Sequence[str], str], Answer]


class State(Enum):
    """How a job stands."""

    NEW = "not submitted"
    UNDER_WAY = "queued or running"
    DONE = "done"
    FAILED = "ended without a result"


class Standing(NamedTuple):
    """One job."""

    point: Point
    state: State
    job: str  # the batch system's id of the last try; "" if there was none
    tries: int


class Jobs:
    """All jobs of a campaign.

    Args:
        ask: runs a program in a directory.
    """

    def __init__(self, campaign: Campaign, env: Mapping[str, str], ask: Ask = ask) -> None:
        self.campaign, self._env, self._ask = campaign, env, ask
        self._machine = load_machine(campaign.machine, env)

    # ---- plan ----

    def plan(self) -> str:
        """Write all job scripts; a table of the jobs and what they may cost."""
        lines = [f"{'job':36} {'nodes':>6} {'ranks':>8} {'slots':>8}  {'at most':>9} {'node-hours':>11}"]
        total = 0.0
        for point in self.campaign.points():
            job = make_job(self.campaign, point, self._env)
            self._write_script(point)
            hours = point.nodes * job.walltime_s / 3600
            total += hours
            ranks = point.nodes * job.ranks_per_node
            slots = "?" if job.slots is None else f"{ranks * job.slots:,}"
            lines.append(f"{point.name:36} {point.nodes:6,} {ranks:8,} {slots:>8}  {clock(job.walltime_s):>9} {hours:11,.2f}")
        count = len(lines) - 1
        lines.append(f"{count} jobs on {self._machine.name}: {total:,.2f} node-hours at most, if each takes its walltime")
        lines.append(f"The job scripts are in {self.campaign.directory}")
        return "\n".join(lines)

    def _write_script(self, point: Point) -> Path:
        job = make_job(self.campaign, point, self._env)
        path = self.campaign.folder(point) / f"{job.name}.sh"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(make_script(job, self._env), encoding="utf-8")
            path.chmod(0o755)
        except OSError as error:
            raise ConfigError(f"cannot write the job script {path}: {error.strerror}") from error
        return path

    # ---- status ----

    def standings(self) -> list[Standing]:
        """All jobs. Asks the batch system about those that were submitted and have left no result."""
        return [self._standing(point) for point in self.campaign.points()]

    def _standing(self, point: Point) -> Standing:
        note = self._note(point)
        if (self.campaign.folder(point) / "result.json").exists():
            return Standing(point, State.DONE, note["job"], note["tries"])
        if not note["tries"]:
            return Standing(point, State.NEW, "", 0)
        state = State.UNDER_WAY if self._is_under_way(note["job"]) else State.FAILED
        if state is State.FAILED and (self.campaign.folder(point) / "result.json").exists():
            state = State.DONE  # it has ended between the two looks
        return Standing(point, state, note["job"], note["tries"])

    def _is_under_way(self, job: str) -> bool:
        argv = [word.format(id=job) for word in QUEUES[self._machine.batch_system]]
        answer = self._ask(argv, str(self.campaign.directory))
        number = job.split(".", maxsplit=1)[0]
        lines = [line for line in answer.out.splitlines() if re.search(rf"(?<!\d){re.escape(number)}(?!\d)", line)]
        return answer.status == 0 and any(not _ENDED.search(line) for line in lines)

    def _note(self, point: Point) -> dict[str, Any]:
        path = self.campaign.folder(point) / "job.json"
        try:
            note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"job": "", "tries": 0}
        except ValueError as error:
            raise ConfigError(f"{path} is damaged: {error}; see whether the job is there, and remove the file") from error
        return note

    # ---- submit ----

    def submit(self, say: Callable[[str], None]) -> int:
        """Submit what has no result and is not under way, as many as may be there at once; how many are left."""
        standings = self.standings()
        under_way = sum(standing.state is State.UNDER_WAY for standing in standings)
        wanted = [standing for standing in standings if standing.state in (State.NEW, State.FAILED)]
        room = max(0, self.campaign.at_once - under_way)
        for standing in wanted[:room]:
            self._submit(standing, say)
        return len(wanted) - min(room, len(wanted))

    def _submit(self, standing: Standing, say: Callable[[str], None]) -> None:
        point = standing.point
        path = self._write_script(point)
        job = submit(self._machine.system, str(path), self._env, lambda argv: self._ask(argv, str(path.parent)))
        note = {"job": job, "tries": standing.tries + 1, "submitted_s": time.time()}
        (path.parent / "job.json").write_text(json.dumps(note) + "\n", encoding="utf-8")
        again = f" (try {note['tries']})" if standing.tries else ""
        say(f"{point.name}: job {job}{again}")

    def submit_all(self, say: Callable[[str], None]) -> None:
        """Submit until every job has had one try in this call; returns when none is queued or running any more."""
        standings = self.standings()
        before = {standing.point.name: standing.tries for standing in standings}
        look_s = _FIRST_LOOK_S
        while True:
            under_way = sum(standing.state is State.UNDER_WAY for standing in standings)
            wanted = [
                standing
                for standing in standings
                if standing.state in (State.NEW, State.FAILED) and standing.tries == before[standing.point.name]
            ]
            for standing in wanted[: max(0, self.campaign.at_once - under_way)]:
                self._submit(standing, say)
                under_way += 1
            if not under_way:
                return
            time.sleep(look_s)
            earlier, standings = standings, self.standings()
            look_s = _FIRST_LOOK_S if standings != earlier else min(1.5 * look_s, _LONGEST_LOOK_S)


def status_text(standings: Sequence[Standing]) -> str:
    """For people: a line for each job that is not done, and counts."""
    lines = []
    for standing in standings:
        if standing.state is not State.DONE:
            job = f", job {standing.job}" if standing.job else ""
            tries = f", {standing.tries} tries" if standing.tries > 1 else ""
            lines.append(f"{standing.point.name:36} {standing.state.value}{job}{tries}")
    counts = [(state, sum(standing.state is state for standing in standings)) for state in State]
    lines.append(f"{len(standings)} jobs: " + ", ".join(f"{count} {state.value}" for state, count in counts if count))
    return "\n".join(lines)

