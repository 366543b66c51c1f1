"""Recorded conversations in the bank: NeMo's duplex Shar with the agent's codes beside it, one folder a part.

DIR/PART/cuts.000000.jsonl.gz  recording.000000.tar  target_audio.000000.tar  codes.000000.tar  000000.done
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from codec.base import AudioCodec
from codec.plain import shown
from duplex.clock import FRAME_MS
from duplex.errors import UserError
from train.bank import AGENT_HZ, USER_HZ, check_part, done_shards, drop_time, mark_done, shard_files, verify_shard, write_json, writing
from train.conversation import Conversation
from train.conversation_files import find_conversations
from train.cut_files import load_codes, read_cuts

SHARD_SIZE = 20


def encode_conversation(conversation: Conversation, codec: AudioCodec) -> np.ndarray:
    """The codes of the agent's channel, int16 [num_frames, K]."""
    rate_hz, samples = codec.config.sample_rate_hz, codec.config.frame_samples
    audio = conversation.agent if rate_hz == AGENT_HZ else soxr.resample(conversation.agent, AGENT_HZ, rate_hz)
    padded = np.zeros(conversation.num_frames * samples, np.float32)
    audio = audio[: len(padded)]
    padded[: len(audio)] = audio
    with torch.inference_mode():
        return codec.encode(torch.from_numpy(padded)[None])[0].numpy().astype(np.int16)


def write_conversations(folder: Path, conversations: Iterable[Conversation], codec: AudioCodec) -> int:
    """Write a part; returns how many conversations it holds.

    Raises:
        UserError: the folder exists already, or cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give another folder, or delete it")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    count = num_shards = 0
    remaining = iter(conversations)
    while shard := list(islice(remaining, SHARD_SIZE)):
        with writing(folder):
            _write_shard(folder, num_shards, shard, codec)
        count, num_shards = count + len(shard), num_shards + 1
    if not count:
        raise UserError(f"no conversation is left for {folder}; see what was left out, and why")
    write_json(folder / "plan.json", {"num_shards": num_shards, "num_conversations": count})
    return count


def _write_shard(folder: Path, index: int, conversations: list[Conversation], codec: AudioCodec) -> None:
    from lhotse.array import Array, TemporalArray
    from lhotse.shar import ArrayTarWriter, SharWriter

    work = folder / f".work-{index:06d}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    with SharWriter(str(work), fields={"recording": "flac", "target_audio": "flac"}, shard_size=None, warn_unused_fields=False) as writer:
        for conversation in conversations:
            writer.write(make_cut(conversation))
    with ArrayTarWriter(str(work / "codes.tar"), shard_size=None, compression="numpy") as codes_writer:
        for conversation in conversations:
            codes = encode_conversation(conversation, codec)
            codes_writer.write(
                conversation.id, codes, TemporalArray(Array("memory_raw", "", "", list(codes.shape)), 0, FRAME_MS / 1000, 0.0)
            )
    files = shard_files(folder, index) | {"target_audio": folder / f"target_audio.{index:06d}.tar"}
    drop_time(next(work.glob("cuts*")))
    for field in ("cuts", "recording", "target_audio", "codes"):
        os.replace(next(work.glob(f"{field}*")), files[field])
    shutil.rmtree(work)
    mark_done(folder, index)


def make_cut(conversation: Conversation) -> Any:
    """The conversation as a Lhotse cut of NeMo's duplex format, its audio in memory."""
    from lhotse import MonoCut, SupervisionSegment
    from lhotse.supervision import AlignmentItem

    recording = _recording(conversation.id, conversation.user, USER_HZ)
    supervisions = []
    for i, spoken in enumerate(conversation.spoken):
        words = [AlignmentItem(w.word, round(w.start_s, 4), round(w.end_s - w.start_s, 4)) for w in spoken.words]
        supervisions.append(
            SupervisionSegment(
                f"{conversation.id}-{i}", conversation.id, round(spoken.start_s, 4), round(spoken.end_s - spoken.start_s, 4),
                text=spoken.text, speaker=spoken.role, alignment={"word": words} if words else None,
            )
        )  # fmt: skip
    agent = np.zeros(round(recording.duration * AGENT_HZ), np.float32)
    agent[: len(conversation.agent)] = conversation.agent[: len(agent)]
    custom = {"target_audio": _recording(conversation.id, agent, AGENT_HZ)}
    return MonoCut(conversation.id, 0, recording.duration, 0, supervisions, recording=recording, custom=custom)


def _recording(name: str, audio: np.ndarray, rate_hz: int) -> Any:
    from lhotse import Recording

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio, -0.999, 0.999), rate_hz, format="WAV", subtype="PCM_16")
    return Recording.from_bytes(buffer.getvalue(), name)


def read_part(folder: Path) -> Iterator[Conversation]:
    """Every conversation of a part, with codes and without the agent's audio.

    Raises:
        UserError: the part is missing, half written, holds no conversations, or a file of it differs from its checksum.
    """
    meta = check_part(folder)
    if "num_conversations" not in meta:
        raise UserError(f"{folder} holds no recorded conversations; write some with `duplex gather SOURCE DIR --codec CODEC`")
    codes = {}
    for index in done_shards(folder):
        verify_shard(folder, index, ("cuts", "recording", "codes"))
        files = shard_files(folder, index)
        for cut in read_cuts({"cuts": [files["cuts"]], "codes": [files["codes"]]}):
            codes[cut.id] = load_codes(cut, files["cuts"])
    for read in find_conversations(folder):
        conversation = read()
        if conversation.id not in codes:
            raise UserError(f"{folder} has no codes of conversation {shown(conversation.id)}; delete the part and gather it again")
        yield replace(conversation, agent=np.zeros(0, np.float32), codes=codes[conversation.id])
