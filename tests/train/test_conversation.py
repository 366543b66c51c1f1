"""Recorded conversations: three formats in, NeMo's out, stretches of them as timelines, and a stage that trains on them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import lightning
import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem

from codec.checkpoint import load_codec, save_codec
from codec.model import Codec
from duplex.cli import main as duplex
from duplex.errors import UserError
from duplex.vocab import Vocab
from tests.codec.test_streaming import TINY as TINY_CODEC
from tests.train.conftest import TinyBank
from tests.train.test_stages import conversations as data_module
from tests.train.test_stages import fit
from train.composer import ComposerConfig, render_user
from train.conversation import Conversation, Spoken, agent_turns, check_conversation, draw_window, quiet_frames, window
from train.conversation_bank import make_cut, read_part, write_conversations
from train.conversation_files import find_conversations, group_words, read_stereo
from train.dialogue_stage import DialogueStage
from train.layout import lay_channels, lay_heard, token_frames
from train.voices import load_engine
from train.voices.base import WordTime

VOCAB = Vocab.train(["so how was it", "it was great", "we went home yes no really"] * 3, 120)


def words(*spans: tuple[str, float, float]) -> tuple[WordTime, ...]:
    return tuple(WordTime(*span) for span in spans)


def spoken(role: str, *spans: tuple[str, float, float]) -> Spoken:
    return Spoken(role, spans[0][1], spans[-1][2], " ".join(word for word, _, _ in spans), words(*spans))


# Six seconds: the user asks, the agent answers at length, the user comes in while it speaks, the agent ends and says yes.
SPOKEN = (
    spoken("user", ("so", 0.5, 0.7), ("how", 0.7, 0.9), ("was", 0.9, 1.1), ("it", 1.1, 1.3)),
    spoken("agent", ("it", 1.7, 1.9), ("was", 1.9, 2.1), ("great", 2.1, 2.6), ("we", 2.7, 2.9), ("went", 2.9, 3.3), ("home", 3.3, 3.8)),
    spoken("user", ("no", 3.0, 3.3), ("really", 3.3, 3.9)),
    spoken("agent", ("yes", 4.8, 5.2)),
)


def tone(seconds: float, spans: list[Spoken], rate_hz: int, pitch_hz: float) -> np.ndarray:
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    on = sum(((time >= one.start_s) & (time < one.end_s)).astype(np.float32) for one in spans)
    return (0.3 * on * np.sin(2 * np.pi * pitch_hz * time)).astype(np.float32)


def example(name: str = "talk", seconds: float = 6.0, what: tuple[Spoken, ...] = SPOKEN) -> Conversation:
    voices = [
        tone(seconds, [one for one in what if one.role == role], rate, pitch)
        for role, rate, pitch in (("user", 16000, 200), ("agent", 24000, 300))
    ]
    return Conversation(name, voices[0], voices[1], what)


def coded(conversation: Conversation) -> Conversation:
    """With codes that count its frames."""
    count = np.arange(conversation.num_frames, dtype=np.int16)
    return dataclasses.replace(conversation, codes=np.stack([count, count], 1))


def test_turns_lie_where_they_sound_and_overlaps_are_kept() -> None:
    timeline = window(coded(example()), 0, 80)
    assert timeline.num_frames == 80 and timeline.recorded is not None and len(timeline.recorded) == 80 * 1280
    assert [(t.start_frame, t.cut_frame, t.answers, t.utterance.text) for t in timeline.agent] == [
        (21, 48, 0, "it was great we went home"), (60, 65, 1, "yes"),
    ]  # fmt: skip
    assert [(t.start_sample, t.kind, t.utterance.text) for t in timeline.user] == [
        (8000, "question", "so how was it"), (48000, "interruption", "no really"),
    ]  # fmt: skip
    for turn in timeline.agent:
        assert turn.utterance.codes is not None and turn.utterance.codes[:, 0].tolist() == list(range(turn.start_frame, turn.cut_frame))
    heard = lay_heard(timeline, VOCAB)
    assert np.flatnonzero(heard)[0] == int(0.7 * 12.5) + 1  # the frame after the end of "so"
    assert VOCAB.decode(int(t) for t in heard if t > 2).lower() == "so how was it no really"


def test_the_channels_of_a_stretch_are_those_of_the_whole() -> None:
    whole, silence = coded(example()), np.array([700, 700])

    def channels(first: int, count: int):
        timeline = window(whole, first, count)
        tokens = {turn.utterance.id: token_frames(turn.utterance, VOCAB) for turn in timeline.agent}
        return lay_channels(timeline, tokens, silence, 2), lay_heard(timeline, VOCAB), timeline.recorded

    (all_channels, all_heard, all_audio), first = channels(0, 76), 50
    (some, heard, audio) = channels(first, 26)
    assert np.array_equal(some.text, all_channels.text[first:]) and np.array_equal(some.codes, all_channels.codes[first:])
    assert np.array_equal(audio, all_audio[first * 1280 :]) and np.array_equal(heard, all_heard[first:])
    assert (some.codes[:, 0][some.speaking] == np.arange(60, 65)).all() and (some.codes[~some.speaking] == 700).all()
    (cut, heard, _) = channels(10, 25)  # ends inside the agent's first turn and inside the user's second
    assert np.array_equal(cut.text, all_channels.text[10:36]) and np.array_equal(heard, all_heard[10:35])


def test_a_session_begins_where_the_agent_is_silent() -> None:
    whole = coded(example())
    quiet = quiet_frames(whole, 2).tolist()
    assert quiet == [*range(18), *range(49, 57), *range(66, 75)]
    seen = set()
    for seed in range(60):
        timeline = draw_window(whole, 20, 2, np.random.default_rng(seed))
        assert all(turn.start_frame >= 3 for turn in timeline.agent)
        seen.add(len(timeline.agent))
    assert seen == {0, 1}
    assert len(draw_window(whole, 500, 2, np.random.default_rng(0)).agent) == 2  # longer than it: from its start, then silence


def test_what_nobody_wrote_down_is_unknown() -> None:
    bare = coded(example(what=tuple(one for one in SPOKEN if one.role == "agent")))
    timeline = window(bare, 0, 80)
    assert (lay_heard(timeline, VOCAB) == -100).all() and timeline.user[0].utterance.text == ""
    untimed = coded(example(what=tuple(dataclasses.replace(one, words=()) for one in SPOKEN)))
    cut = window(untimed, 12, 60)  # begins inside the user's first turn
    assert [turn.utterance.text for turn in cut.user] == ["", "no really"]
    assert lay_heard(cut, VOCAB)[0] == -100 and cut.user[0].start_sample == 0
    assert token_frames(cut.agent[0].utterance, VOCAB)[0][0] == 0  # one token a frame from the turn's start


def test_an_agent_that_goes_on_keeps_its_turn() -> None:
    halves = (
        spoken("agent", ("it", 1.0, 1.2), ("was", 1.2, 1.4)),
        spoken("agent", ("great", 1.7, 2.0)),
        spoken("agent", ("yes", 2.5, 2.8)),
    )
    turns = agent_turns(coded(example(what=halves)))
    assert [(turn.utterance.text, turn.start_frame, turn.cut_frame) for turn in turns] == [("it was great", 12, 25), ("yes", 31, 35)]
    assert [w.start_sample for w in turns[0].utterance.words] == [960, 5760, 17760]


def long_text() -> Spoken:
    return Spoken("agent", 1.0, 1.3, "it was great we went home yes no really it was great", ())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ((SPOKEN[0],), "talk: the agent says nothing; name its role"),
        ((*SPOKEN, spoken("agent", ("no", 5.9, 6.5))), "'no' of the agent is at 5.90 to 6.50 s of 6.00 s of audio"),
        ((*SPOKEN, Spoken("user", 4.0, 4.0, "so")), "'so' of the user is at 4.00 to 4.00 s"),
        (
            (*SPOKEN[:1], Spoken("user", 1.2, 2.0, "was"), SPOKEN[1]),
            "'was' of the user begins at 1.20 s, before 'so how was it' of the same speaker ends",
        ),
        ((*SPOKEN[:2], Spoken("agent", 3.5, 4.5, "yes")), "'yes' of the agent begins at 3.50 s, before 'it was great we went home'"),
        (
            (SPOKEN[0], long_text()),
            r"talk at 0.96 s: the text 'it was great .*' has \d+ tokens, too many for its 5 frames of speech; correct",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(what: tuple[Spoken, ...], message: str) -> None:
    check_conversation(example(), VOCAB)
    with pytest.raises(UserError, match=message) as caught:
        check_conversation(example(what=what), VOCAB)
    assert "\n" not in str(caught.value)


def same(one: Conversation, other: Conversation, atol: float = 2e-3) -> None:
    assert one.id == other.id and len(one.spoken) == len(other.spoken)
    for a, b in zip(one.spoken, other.spoken, strict=True):
        assert (a.role, a.text) == (b.role, b.text) and [w.word for w in a.words] == [w.word for w in b.words]
        times = [(x.start_s, x.end_s) for x in (a, *a.words)], [(x.start_s, x.end_s) for x in (b, *b.words)]
        np.testing.assert_allclose(*times, atol=atol)
    np.testing.assert_allclose(one.user, other.user, atol=1e-3)


def test_the_bank_keeps_them_and_is_nemos_format(tmp_path: Path, bank: TinyBank) -> None:
    codec, folder = load_codec(bank.codec), tmp_path / "bank" / "talks"
    originals = [example("a"), example("b", 7.0)]
    assert write_conversations(folder, iter(originals), codec) == 2
    for original, kept in zip(originals, read_part(folder), strict=True):
        same(original, kept)
        assert kept.codes is not None and kept.codes.shape == (original.num_frames, codec.config.num_codebooks) and not len(kept.agent)
        audio = np.zeros(original.num_frames * 1920, np.float32)
        audio[: len(original.agent)] = original.agent
        with torch.no_grad():
            expected = codec.encode(torch.from_numpy(audio)[None])[0].numpy()
        assert np.array_equal(kept.codes, expected)
    fields = {field: [str(next(folder.glob(f"{field}.*")))] for field in ("cuts", "recording", "target_audio")}
    for original, cut in zip(originals, CutSet.from_shar(fields=fields), strict=True):  # as NeMo reads it
        assert cut.sampling_rate == 16000 and cut.target_audio.sampling_rate == 24000 and cut.duration == cut.target_audio.duration
        np.testing.assert_allclose(cut.load_target_audio()[0], original.agent, atol=1e-3)
        assert [(s.speaker, s.text) for s in cut.supervisions] == [(one.role, one.text) for one in original.spoken]
    with pytest.raises(UserError, match="is not empty; give another folder"):
        write_conversations(folder, iter(originals), codec)
    with pytest.raises(UserError, match="holds no recorded conversations"):
        list(read_part(bank.folder / "agent"))


def save_cuts(folder: Path, conversation: Conversation, user_hz: int = 16000, agent_hz: int = 22050, **roles: str) -> Path:
    """A manifest as NeMo's scripts write it: files on disk, other names of roles, timestamps in the text, no word times."""
    import soxr

    for name, audio, rate, wanted in (("user", conversation.user, 16000, user_hz), ("agent", conversation.agent, 24000, agent_hz)):
        soundfile.write(folder / f"{name}.wav", soxr.resample(audio, rate, wanted), wanted)
    recording = Recording.from_file(folder / "user.wav")
    supervisions = [
        SupervisionSegment(
            f"s{i}", recording.id, one.start_s, one.end_s - one.start_s, text=f"<|{i}|> {one.text} <|{i + 3}|>",
            speaker=(roles or {"user": "User", "agent": "Assistant"})[one.role],
            alignment={"word": [AlignmentItem(w.word, w.start_s, w.end_s - w.start_s) for w in one.words]},
        )
        for i, one in enumerate(conversation.spoken)
    ]  # fmt: skip
    cut = MonoCut(
        conversation.id, 0, recording.duration, 0, supervisions, recording=recording,
        custom={"target_audio": Recording.from_file(folder / "agent.wav")},
    )  # fmt: skip
    CutSet.from_cuts([cut]).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


@pytest.mark.parametrize(("user_hz", "agent_hz"), [(16000, 22050), (8000, 24000), (48000, 16000)])
def test_nemos_manifests_are_read(tmp_path: Path, user_hz: int, agent_hz: int) -> None:
    (read,) = find_conversations(save_cuts(tmp_path, example(), user_hz, agent_hz))
    conversation = read()
    check_conversation(conversation, VOCAB)
    for one, other in zip(conversation.spoken, SPOKEN, strict=True):
        assert (one.role, one.text, round(one.start_s, 3)) == (other.role, other.text, other.start_s) and len(one.words) == len(other.words)
    assert abs(len(conversation.user) - 6 * 16000) < 20 and abs(len(conversation.agent) - 6 * 24000) < 30
    assert float(np.abs(conversation.user[16000:20000]).max()) > 0.25 and float(np.abs(conversation.user[22400:46400]).max()) < 0.05


def test_bad_cuts_are_one_sentence(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            [read() for read in find_conversations(path)]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    path = save_cuts(tmp_path, example(), user="user", agent="robot")
    assert "has a supervision of the speaker 'robot'; its role must be one of user, agent, assistant" in message(path)
    assert "the user's audio is at 4000 Hz; it must be at 8000 to 192000 Hz" in message(save_cuts(tmp_path, example(), user_hz=4000))
    assert "the agent's audio is at 8000 Hz; it must be at 16000" in message(save_cuts(tmp_path, example(), agent_hz=8000))
    shorter = dataclasses.replace(example(), agent=example().agent[: 4 * 24000])
    assert "the user's audio is 6.00 s long, the agent's 4.00 s; pad the shorter with silence" in message(save_cuts(tmp_path, shorter))
    path = save_cuts(tmp_path, example())
    (tmp_path / "agent.wav").unlink()
    assert "the audio of cut talk of " in message(path) and "cannot be read (" in message(path)
    cuts = CutSet.from_file(path)
    CutSet.from_cuts(cut.drop_custom("target_audio") for cut in cuts).to_file(tmp_path / "bare.jsonl")
    assert "has no target_audio, which is the agent's voice; add it" in message(tmp_path / "bare.jsonl")
    (tmp_path / "broken.jsonl").write_text("{")
    assert "is damaged (" in message(tmp_path / "broken.jsonl")
    (tmp_path / "other.jsonl").write_text('{"audio_filepath": "x.wav"}')
    assert "holds no cuts that can be read" in message(tmp_path / "other.jsonl")
    (tmp_path / "nothing").mkdir()
    assert "holds no recordings" in message(tmp_path / "nothing")
    assert "is no folder of recordings or Shar and no .jsonl manifest" in message(tmp_path / "absent")


def save_stereo(path: Path, conversation: Conversation, alignments: bool = True, agent_left: bool = True) -> Path:
    """As moshi-finetune has it: the agent left, words beside it."""
    voices = [conversation.agent, np.repeat(conversation.user, 3)[::2]]
    soundfile.write(path, np.stack(voices if agent_left else voices[::-1], 1), 24000)
    if alignments:
        names = {"agent": "SPEAKER_MAIN", "user": "SPEAKER_1"}
        entries = [[w.word, [w.start_s, w.end_s], names[one.role]] for one in conversation.spoken for w in one.words]
        path.with_suffix(".json").write_text(json.dumps({"alignments": entries}))
    return path


def test_moshis_folders_and_manifests_are_read(tmp_path: Path) -> None:
    (tmp_path / "talks").mkdir()
    save_stereo(tmp_path / "talks" / "one.wav", example())
    (tmp_path / "data.jsonl").write_text(json.dumps({"path": "talks/one.wav", "duration": 6.0}) + "\n")
    (of_folder,), (of_manifest,) = find_conversations(tmp_path / "talks"), find_conversations(tmp_path / "data.jsonl")
    for conversation, name in ((of_folder(), "one"), (of_manifest(), "talks-one")):
        assert conversation.id == name
        assert [(one.role, one.text) for one in conversation.spoken] == [(one.role, one.text) for one in SPOKEN]
        np.testing.assert_allclose(conversation.agent, example().agent, atol=1e-3)
        check_conversation(conversation, VOCAB)


def test_a_folder_without_texts_is_written_down(tmp_path: Path) -> None:
    save_stereo(tmp_path / "one.wav", example(), alignments=False, agent_left=False)
    with pytest.raises(UserError, match="has no one.json beside it; write its words there, or add --transcribe"):
        [read() for read in find_conversations(tmp_path)]

    def listen(audio: np.ndarray) -> list[WordTime]:
        loud = np.flatnonzero(np.abs(audio[:24000]) > 0.1)
        role = "user" if len(loud) else "agent"  # only the user speaks in the first second and a half
        return [word for one in SPOKEN if one.role == role for word in one.words]

    (read,) = find_conversations(tmp_path, 1, listen)
    same(dataclasses.replace(read(), id="talk", user=example().user), example())


def test_bad_stereo_is_one_sentence(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "mono.wav", np.zeros(2400), 24000)
    with pytest.raises(UserError, match=r"mono.wav has 1 channel\(s\); a conversation needs two, with one speaker on each"):
        read_stereo(tmp_path / "mono.wav", "mono", 0, None)
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(UserError, match="text.wav cannot be read"):
        read_stereo(tmp_path / "text.wav", "text", 0, None)
    path = save_stereo(tmp_path / "one.wav", example())
    path.with_suffix(".json").write_text('{"alignments": [["a", 1.0]]}')
    with pytest.raises(UserError, match="one.json is damaged; it must hold `alignments`"):
        read_stereo(path, "one", 0, None)


def test_words_far_apart_are_of_two_turns() -> None:
    groups = group_words("user", words(("b", 1.0, 1.2), ("a", 0.5, 0.9), ("c", 1.9, 2.0)))
    assert [(one.text, one.start_s, one.end_s) for one in groups] == [("a b", 0.5, 1.2), ("c", 1.9, 2.0)]
    assert group_words("user", ()) == []


def test_gathered_and_trained_on(tmp_path: Path, bank: TinyBank, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "talks"
    source.mkdir()
    for i in range(3):
        save_stereo(source / f"{i}.wav", example())
    soundfile.write(source / "bad.wav", np.zeros(2400), 24000)
    arguments = ["gather", str(source), str(bank.folder / "talks"), "--codec", str(bank.codec)]
    assert duplex(arguments) == 2
    assert "bad.wav has 1 channel(s)" in capsys.readouterr().err
    assert duplex([*arguments[:2], str(bank.folder / "talks-2"), *arguments[3:], "--skip-bad"]) == 0
    printed = capsys.readouterr()
    assert "left out: " in printed.err and printed.out.endswith("3 conversations\n")
    options = {"recorded_parts": ["talks-2"], "recorded_fraction": 0.5, "composer": ComposerConfig(num_frames=75)}
    data = data_module(bank, tmp_path, 4, **options)
    data.setup("fit")
    timelines = [data._timeline(False, np.random.default_rng(seed)) for seed in range(40)]
    recorded = [timeline for timeline in timelines if timeline.recorded is not None]
    assert 10 < len(recorded) < 30
    played = render_user(recorded[0], None, np.random.default_rng(0))
    assert np.abs(played - recorded[0].recorded).max() < 1e-3
    alone = data_module(bank, tmp_path, 40, **{**options, "recorded_fraction": 1.0, "user_parts": None, "speak_fraction": 0.0})
    losses: list[float] = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            losses.append(float(trainer.callback_metrics["text"]))

    fit(DialogueStage(40, bank.model, learning_rate=1e-2, warmup_steps=1), alone, callbacks=[Watch()])
    assert len(losses) == 40 and losses[-1] < 0.5 * losses[0]
    batch = alone.batch(0)
    assert batch.speaking.any() and (batch.text == Vocab.bos).any() and (batch.heard > Vocab.eos).any()


def test_rows_drawn_from_nothing_are_refused(tmp_path: Path, bank: TinyBank) -> None:
    with pytest.raises(UserError, match="composed rows need user_parts, which is empty"):
        data_module(bank, tmp_path, user_parts=None, speak_fraction=0.0).setup("fit")


def test_weights_of_unknown_skills_are_refused(tmp_path: Path, bank: TinyBank) -> None:
    with pytest.raises(UserError, match="skill 'talks' of the composer's weights is unknown; use plus, .*, open"):
        data_module(bank, tmp_path, composer=ComposerConfig(interruption_weights={"talks": 1.0})).setup("fit")


def test_a_cut_of_ours_is_a_cut_of_theirs() -> None:
    cut = make_cut(example())
    assert cut.supervisions[0].alignment["word"][1].symbol == "how" and cut.supervisions[0].alignment["word"][1].start == 0.7


@pytest.mark.slow
def test_a_recognizer_writes_a_bare_recording_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faster_whisper")
    pytest.importorskip("hibari")
    said = ("What is the capital of France?", "The capital of France is Paris.")
    speech = [load_engine("hibari").synthesize(text, "heart").audio for text in said]
    voices = np.zeros((2, 8 * 24000), np.float32)
    voices[0, 12000 : 12000 + len(speech[0])] = speech[0]
    begin = 12000 + len(speech[0]) - 6000  # a quarter of a second of overlap
    voices[1, begin : begin + len(speech[1])] = speech[1]
    soundfile.write(tmp_path / "one.wav", voices.T, 24000)
    torch.manual_seed(0)
    save_codec(Codec(TINY_CODEC), tmp_path / "codec")
    arguments = [str(tmp_path / "one.wav").removesuffix("/one.wav"), str(tmp_path / "talks"), "--codec", str(tmp_path / "codec")]
    assert duplex(["gather", *arguments, "--agent", "right", "--transcribe"]) == 0
    (conversation,) = read_part(tmp_path / "talks")
    heard = {one.role: one for one in conversation.spoken}
    for role, text in zip(("user", "agent"), said, strict=True):
        assert heard[role].text.lower().strip(".?") == text.lower().strip(".?")
    assert abs(heard["user"].start_s - 0.5) < 0.5 and abs(heard["agent"].start_s - begin / 24000) < 0.5
