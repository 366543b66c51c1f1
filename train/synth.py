"""`duplex synth`: texts to speech, into the utterance bank. Sharded, resumable, the same on every machine.

A part is planned whole before a word is spoken: the plan is a pure function of its config, so workers share nothing but the
shard numbers, and a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import soxr

from codec.base import AudioCodec
from duplex.errors import UserError
from train import corpus, world
from train.bank import (
    AGENT_HZ,
    USER_HZ,
    Utterance,
    check_part,
    done_shards,
    drop_time,
    mark_done,
    read_json,
    read_shard,
    shard_files,
    verify_shard,
    write_json,
    writing,
)
from train.cut_files import find_recordings
from train.open_questions import read_answers
from train.voices import Speech, load_engine

SHARD_SIZE = 500


@dataclass(frozen=True)
class PartConfig:
    """One folder of the bank.

    Attributes:
        name: Folder name.
        role: `user` (questions, 16 kHz) or `agent` (answers, 24 kHz).
        split: Which voices and phrasings; agent parts ignore it.
        engines: Keep the split's voices of these engines; empty keeps all.
        num_exchanges: Questions drawn from the world; of an agent part, their answers.
        skills: Draw only these skills, evenly; empty draws all by their weights. `backchannel` in an agent part is what it says to show
            that it listens.
        num_phrases: Short sentences of the chat corpus added that are to be repeated, each another; as `train` asks for it.
        num_sentences: Sentences of the chat corpus added, from `sentence_offset` on, less those that val or test ask to be repeated.
        recordings: Folder of recordings of people that are added, each as it is, with the words that a recognizer hears in it; what it is
            not sure of is left out (user).
        open_questions: Path of a file that `duplex ask` wrote: its questions of the split are added (user).
        answers_to: Agent only: user parts whose answers are spoken.
        fixed_answers: Agent only: also speak every answer that does not depend on a question's values.
        seed: Seed of every draw.
    """

    name: str
    role: str = "user"
    split: str = "train"
    engines: tuple[str, ...] = ()
    num_exchanges: int = 0
    skills: tuple[str, ...] = ()
    num_phrases: int = 0
    num_sentences: int = 0
    sentence_offset: int = 0
    recordings: str = ""
    open_questions: str = ""
    answers_to: tuple[str, ...] = ()
    fixed_answers: bool = True
    seed: int = 0


@dataclass(frozen=True)
class SynthConfig:
    """What `duplex synth` builds: parts in order, an agent voice, and where."""

    bank: str
    parts: list[PartConfig] = field(default_factory=list)
    agent_voice: str = "hibari:heart"


@dataclass(frozen=True)
class Task:
    """One sentence to speak."""

    id: str
    text: str
    voice: str
    speed: float
    skill: str = ""
    answer: str | None = None
    value: str = ""


def plan_part(part: PartConfig, config: SynthConfig) -> list[Task]:
    """Every sentence of a part, in order."""
    if part.role not in ("user", "agent"):
        raise UserError(f"bank part {part.name!r} has role {part.role!r}; use user or agent")
    unknown = sorted(set(part.skills) - set(world.SKILL_WEIGHTS))
    if unknown:
        raise UserError(f"bank part {part.name!r} has the unknown skill {unknown[0]!r}; use some of {', '.join(world.SKILL_WEIGHTS)}")
    if part.role == "agent":
        return _plan_agent(part, config)
    rng = random.Random(f"{part.seed}/{part.name}")
    voices = [v for v in world.voices(part.split) if not part.engines or v.split(":")[0] in part.engines]
    if not voices:
        raise UserError(f"bank part {part.name!r}: no voice of engines {', '.join(part.engines)} is in split {part.split!r}")
    tasks = []
    for i, exchange in enumerate(_exchanges(part, part.split, rng)):
        tasks.append(
            Task(
                f"{part.name}-{i:06d}", exchange.question, rng.choice(voices), _speed(rng), exchange.skill, exchange.answer, exchange.value
            )
        )
    for i, text in enumerate(_sentences(part)):
        tasks.append(Task(f"{part.name}-s{i:06d}", text, rng.choice(voices), _speed(rng), "sentence"))
    for i, path in enumerate(find_recordings(part.recordings) if part.recordings else []):
        tasks.append(Task(f"{part.name}-r{i:06d}", "", f"recorded:{path}", 1.0, "sentence"))
    for i, exchange in enumerate(read_answers(part.open_questions, part.split) if part.open_questions else []):
        tasks.append(Task(f"{part.name}-o{i:06d}", exchange.question, rng.choice(voices), _speed(rng), exchange.skill, exchange.answer))
    return tasks


def _exchanges(part: PartConfig, split: str, rng: random.Random) -> Iterator[world.Exchange]:
    """What is drawn from the world, each as it is asked for: whoever asks may draw from `rng` in between."""
    phrases = corpus.repeat_phrases(split) if part.num_exchanges or part.num_phrases else ()
    for _ in range(part.num_exchanges):
        yield world.draw(rng, split, rng.choice(part.skills) if part.skills else None, phrases)
    if not 0 <= part.num_phrases <= (len(phrases) if split == "train" else 0):
        raise UserError(
            f"bank part {part.name!r} wants {part.num_phrases} phrases of split {split!r}; train has "
            f"{len(corpus.repeat_phrases('train'))}, the others none"
        )
    for phrase in rng.sample(phrases, part.num_phrases):
        yield world.repeat(rng, phrase)


def _speed(rng: random.Random) -> float:
    return round(rng.uniform(0.85, 1.2), 2)


def _sentences(part: PartConfig) -> list[str]:
    if not part.num_sentences:
        return []
    held_out = {phrase.lower() for split in ("val", "test") for phrase in corpus.repeat_phrases(split)}  # they come from the same corpus
    drawn = corpus.chat_sentences(part.sentence_offset + part.num_sentences, seed=0)[part.sentence_offset :]
    return [text for text in drawn if text.rstrip(".!?").lower() not in held_out]


def _plan_agent(part: PartConfig, config: SynthConfig) -> list[Task]:
    texts: dict[str, None] = {}
    if part.fixed_answers:
        texts.update(dict.fromkeys(world.memory_answers()))
        for name in ("talk", "long"):
            texts.update(dict.fromkeys(entry["answer"] for entry in world.skills()[name].values()))
    if set(part.skills) - {"backchannel"} and not part.num_exchanges:
        raise UserError(
            f"agent part {part.name!r} has skills {', '.join(part.skills)} and no num_exchanges to draw of them; of its own an agent has "
            "only backchannel"
        )
    rng = random.Random(f"{part.seed}/{part.name}")
    texts.update(dict.fromkeys(world.skills()["listening"] if "backchannel" in part.skills else ()))
    texts.update(dict.fromkeys(exchange.answer for exchange in _exchanges(part, "train", rng) if exchange.answer))
    by_name = {p.name: p for p in config.parts}
    for name in part.answers_to:
        if name not in by_name:
            raise UserError(f"bank part {part.name!r} answers {name!r}, which the config does not define")
        texts.update(dict.fromkeys(t.answer for t in plan_part(by_name[name], config) if t.answer))
    texts.update(dict.fromkeys(_sentences(part)))
    return [Task(f"{part.name}-{i:06d}", text, config.agent_voice, 1.0) for i, text in enumerate(texts)]


_TAIL_DB, _TAIL_BLOCKS, _DECAY_BLOCKS = -22.0, 30, 10


def trim_bounds(audio: np.ndarray, rate_hz: int, floor_db: float = -42.0) -> tuple[int, int]:
    """First and last audible sample: 10 ms blocks within `floor_db` of the loudest block. (0, 0) when silent.

    A tail of more than 0.3 s that stays 22 dB below the loudest block is no speech (some voices end in steady noise): it is cut 0.1 s in.
    """
    hop = rate_hz // 100
    blocks = np.sqrt((audio[: len(audio) // hop * hop].reshape(-1, hop) ** 2).mean(1) + 1e-12)
    loud = np.flatnonzero(blocks > max(blocks.max(initial=0.0) * 10 ** (floor_db / 20), 1e-4))
    if not len(loud):
        return 0, 0
    last, strong = int(loud[-1]), int(np.flatnonzero(blocks > blocks.max() * 10 ** (_TAIL_DB / 20))[-1])
    if last - strong > _TAIL_BLOCKS:
        last = strong + _DECAY_BLOCKS
    return int(loud[0]) * hop, (last + 1) * hop


def _speak(task: Task, speech: Speech, rate_hz: int):
    """Trim, resample and wrap one sentence as a Lhotse cut; None when nothing is audible or known of it."""
    import io

    import soundfile
    import soxr
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.supervision import AlignmentItem

    start, end = trim_bounds(speech.audio, speech.sample_rate_hz)
    text = task.text or " ".join(w.word for w in speech.words)
    if end - start < speech.sample_rate_hz // 10 or not text:
        return None
    audio = soxr.resample(speech.audio[start:end], speech.sample_rate_hz, rate_hz)
    audio = np.clip(audio, -0.999, 0.999)
    offset, duration = start / speech.sample_rate_hz, len(audio) / rate_hz
    words = []
    for w in speech.words:
        begin = min(max(w.start_s - offset, 0.0), duration - 0.01)
        words.append(AlignmentItem(w.word, round(begin, 4), round(max(min(w.end_s - offset, duration) - begin, 0.01), 4)))
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate_hz, format="WAV", subtype="PCM_16")
    supervision = SupervisionSegment(
        task.id, task.id, 0, duration, text=text, language="en", speaker=task.voice, alignment={"word": words} if words else None
    )
    custom = {"skill": task.skill, "answer": task.answer, "value": task.value, "sample_rate_hz": rate_hz}
    return MonoCut(task.id, 0, duration, 0, [supervision], recording=Recording.from_bytes(buffer.getvalue(), task.id), custom=custom)


def _build_shard(folder: Path, index: int, tasks: list[Task], rate_hz: int, engines: dict) -> float:
    """Write one shard; returns the hours of speech in it."""
    from lhotse.shar import SharWriter

    work = folder / f".work-{index:06d}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    seconds = 0.0
    with SharWriter(str(work), fields={"recording": "flac"}, shard_size=None, warn_unused_fields=False) as writer:
        for task in tasks:
            engine, _, voice = task.voice.partition(":")
            cut = _speak(task, engines[engine].synthesize(task.text, voice, task.speed), rate_hz)
            if cut is not None:
                writer.write(cut)
                seconds += cut.duration
    files = shard_files(folder, index)
    files["codes"].unlink(missing_ok=True)  # codes of an earlier build
    drop_time(next(work.glob("cuts*")))
    os.replace(next(work.glob("cuts*")), files["cuts"])
    os.replace(next(work.glob("recording*")), files["recording"])
    shutil.rmtree(work)
    mark_done(folder, index)
    return seconds / 3600


def _work(folder: Path, tasks: list[Task], shards: list[int], rate_hz: int) -> None:
    names = {task.voice.partition(":")[0] for index in shards for task in tasks[index * SHARD_SIZE : (index + 1) * SHARD_SIZE]}
    engines = {name: load_engine(name) for name in sorted(names)}
    begin_s, hours = time.perf_counter(), 0.0
    for index in shards:
        try:
            with writing(folder):
                hours += _build_shard(folder, index, tasks[index * SHARD_SIZE : (index + 1) * SHARD_SIZE], rate_hz, engines)
        finally:
            shutil.rmtree(folder / f".work-{index:06d}", ignore_errors=True)
        speed = f"{hours:.2f} h of speech by this process, {hours / (time.perf_counter() - begin_s) * 3600:.1f} h an hour"
        print(f"{folder.name}: shard {index} done ({len(done_shards(folder))} of {-(-len(tasks) // SHARD_SIZE)}; {speed})", flush=True)


def _end_with_parent() -> None:
    """In a worker: end when the process that started it does, so that a run that is taken up again has the folder to itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def build_part(part: PartConfig, config: SynthConfig, num_workers: int) -> None:
    """Build what is missing of one part.

    Raises:
        UserError: the folder holds another plan, or cannot be written, or a worker was killed.
    """
    tasks = plan_part(part, config)
    folder = Path(config.bank) / part.name
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256("".join(json.dumps(asdict(t)) for t in tasks).encode()).hexdigest()
    num_shards = -(-len(tasks) // SHARD_SIZE)
    plan = folder / "plan.json"
    if plan.exists() and read_json(plan, "delete it and run the same command again").get("digest") != digest:
        raise UserError(f"{folder} was begun with another plan; delete it or give the part another name")
    write_json(plan, {"digest": digest, "num_shards": num_shards, "num_sentences": len(tasks), "part": asdict(part)})
    missing = sorted(set(range(num_shards)) - set(done_shards(folder)))
    rate_hz = AGENT_HZ if part.role == "agent" else USER_HZ
    if num_workers <= 1 or len(missing) <= 1:
        _work(folder, tasks, missing, rate_hz)
        return
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(num_workers, context, _end_with_parent) as workers:
            futures = [workers.submit(_work, folder, tasks, missing[i::num_workers], rate_hz) for i in range(num_workers)]
            for future in futures:
                future.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"a worker was killed while building {folder}, perhaps for want of memory; run the same command again, with fewer --workers"
        ) from error


def _at_rate(utterance: Utterance, rate_hz: int) -> np.ndarray:
    """Its audio as float32 at the rate of a codec."""
    audio = (utterance.audio / 32767.0).astype(np.float32)
    return audio if utterance.sample_rate_hz == rate_hz else soxr.resample(audio, utterance.sample_rate_hz, rate_hz)


def encode_part(folder: Path, codec_dir: str) -> None:
    """Add the codec's codes to every shard of an agent part, beside the audio.

    Raises:
        UserError: the part is not whole, a file of it differs from its checksum, or the folder cannot be written.
        CheckpointError: the codec is missing or damaged.
    """
    from codec.checkpoint import load_codec

    codec = load_codec(codec_dir)
    meta = check_part(folder)
    digest = f"{zlib.crc32(b''.join(p.detach().numpy().tobytes() for p in codec.encoder_parameters())):08x}"
    stamp = folder / "codes.json"
    whole = all(shard_files(folder, index)["codes"].exists() for index in range(meta["num_shards"]))
    if whole and stamp.exists() and read_json(stamp, "delete it and run the same command again").get("encoder") == digest:
        return
    stamp.unlink(missing_ok=True)  # until all codes are of this codec
    for index in range(meta["num_shards"]):
        verify_shard(folder, index, ("cuts", "recording"))
        try:
            with writing(folder):
                _encode_shard(folder, index, codec)
        finally:
            shutil.rmtree(folder / f".codes-{index:06d}", ignore_errors=True)
    write_json(stamp, {"encoder": digest})


def _encode_shard(folder: Path, index: int, codec: AudioCodec) -> None:
    import torch
    from lhotse.array import Array, TemporalArray
    from lhotse.shar import ArrayTarWriter

    files = shard_files(folder, index)
    utterances = list(read_shard(files, ("recording",)))
    order = sorted(range(len(utterances)), key=lambda i: utterances[i].num_samples)
    codes: dict[int, np.ndarray] = {}
    for batch in (order[i : i + 16] for i in range(0, len(order), 16)):
        pieces = [_at_rate(utterances[i], codec.config.sample_rate_hz) for i in batch]
        frames = [-(-len(piece) // codec.config.frame_samples) + 1 for piece in pieces]
        audio = np.zeros((len(batch), max(frames) * codec.config.frame_samples), np.float32)
        for row, piece in enumerate(pieces):
            audio[row, : len(piece)] = piece
        with torch.inference_mode():
            result = codec.encode(torch.from_numpy(audio)).numpy()  # [B, T, K]
        for row, i in enumerate(batch):
            codes[i] = result[row, : frames[row]].astype(np.int16)
    work = folder / f".codes-{index:06d}"
    work.mkdir(exist_ok=True)
    with ArrayTarWriter(str(work / "codes.tar"), shard_size=None, compression="numpy") as writer:
        for i, u in enumerate(utterances):
            array = Array("memory_raw", "", "", list(codes[i].shape))
            writer.write(u.id, codes[i], TemporalArray(array, 0, 0.08, 0.0))
    os.replace(next(work.glob("codes*")), files["codes"])
    shutil.rmtree(work)
    mark_done(folder, index)
