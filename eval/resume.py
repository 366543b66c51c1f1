"""Finished conversations kept beside the report, so that a run that was cut off goes on where it stopped.

    OUT/unfinished/KEY/ID.json   the verdict        ID.wav   the agent

A conversation whose scenario has changed since (another bank, another version of the suite) is run again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from duplex.errors import UserError
from eval.draft import Scenario
from eval.files import whole
from eval.judge import Conversation, TurnOutcome
from eval.systems import AGENT_HZ, Reply


class Store:
    """The conversations of one run.

    Args:
        folder: `OUT/unfinished`; made when the first conversation is saved.
        key: Everything that the conversations depend on besides their scenarios: suite, system, n, seed, knobs.
    """

    def __init__(self, folder: Path, **key: Any) -> None:
        self._folder = folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self._parent = folder

    def save(self, conversation: Conversation) -> None:
        """Keep a finished conversation.

        Raises:
            UserError: it cannot be written.
        """
        import soundfile

        reply = conversation.reply
        record = {
            "scenario": fingerprint(conversation.scenario),
            "failed": reply.failed,
            "text_events": reply.text_events,
            "agent": conversation.agent,
            "outcomes": [{k: v for k, v in asdict(outcome).items() if k != "turn"} for outcome in conversation.outcomes],
        }
        name = conversation.scenario.id
        try:
            with whole(self._folder / f"{name}.wav") as path:
                soundfile.write(path, reply.audio, AGENT_HZ, format="WAV", subtype="PCM_16")
            with whole(self._folder / f"{name}.json") as path:
                path.write_text(json.dumps(record))
        except (OSError, soundfile.LibsndfileError) as error:
            raise UserError(f"{self._folder} cannot be written ({error}); give a writable folder with --out") from error

    def load(self, scenario: Scenario) -> Conversation | None:
        """The conversation, if it was finished with this very scenario."""
        import soundfile

        path = self._folder / f"{scenario.id}.json"
        try:
            record = json.loads(path.read_text())
            audio, _ = soundfile.read(path.with_suffix(".wav"), dtype="float32")
        except (OSError, ValueError, soundfile.LibsndfileError):
            return None
        if record["scenario"] != fingerprint(scenario):
            return None
        events = tuple((time_s, piece) for time_s, piece in record["text_events"])
        outcomes = [
            TurnOutcome(turn=turn, **{f.name: _tuples(saved[f.name]) for f in fields(TurnOutcome) if f.name != "turn"})
            for turn, saved in zip(scenario.turns, record["outcomes"], strict=True)
        ]
        return Conversation(scenario, Reply(audio, events, record["failed"]), _tuples(record["agent"]), tuple(outcomes))

    def clear(self) -> None:
        """Forget the run: its report is written."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._parent.is_dir() and not any(self._parent.iterdir()):
            self._parent.rmdir()


def fingerprint(scenario: Scenario) -> str:
    """Changes when anything of a scenario does."""
    truth = json.dumps([[asdict(turn) for turn in scenario.turns], asdict(scenario.echo) if scenario.echo else None], sort_keys=True)
    return f"{zlib.crc32(np.ascontiguousarray(scenario.audio).tobytes()):08x}{zlib.crc32(truth.encode()):08x}"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
