"""Every stage learns on tiny shapes through a real Trainer, and a run resumed from a checkpoint ends as if it had never stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from codec.checkpoint import load_codec, save_codec
from codec.config import NanoConfig
from codec.losses import SCALES
from codec.model import Codec
from codec.nano import NanoCodec
from duplex.checkpoint import load_speaker
from duplex.config import WhisperConfig
from duplex.errors import UserError
from duplex.vocab import Vocab
from tests.codec.test_streaming import TINY as TINY_CODEC
from tests.codec.test_streaming import noise
from tests.train.conftest import TinyBank
from train.augment import AugmentConfig
from train.bank import Utterance, Word
from train.codec_stage import AgentCrops, CodecStage
from train.composer import ComposerConfig
from train.dialogue_data import ConversationBatch, Conversations
from train.dialogue_stage import DialogueStage, LossConfig, corrupt_codes, dialogue_losses, stage_weights
from train.encoder_stage import EncoderStage, UserSpeech, align_characters, edit_distance, mask_features, warp_features
from train.export import export_codec, export_model
from train.loader import StepLoader

STEPS = 6


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def fit(
    stage: lightning.LightningModule, data: lightning.LightningDataModule | list, ckpt: Path | None = None, **options
) -> lightning.Trainer:
    options = {"logger": False, "enable_checkpointing": False, **options}
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options
    )
    if isinstance(data, list):
        trainer.fit(stage, train_dataloaders=StepLoader(data.__getitem__, len(data)))
    else:
        trainer.fit(stage, datamodule=data, ckpt_path=ckpt, weights_only=None if ckpt is None else False)
    return trainer


def conversations(bank: TinyBank, tmp_path: Path, num_steps: int = STEPS, **options) -> Conversations:
    options = {"user_parts": ["user"], "batch_size": 2, "speak_fraction": 0.3, "composer": ComposerConfig(num_frames=100), **options}
    return Conversations(
        str(bank.folder), ["agent"], ["agent"], str(bank.codec), str(tmp_path / "tokenizer.json"), num_steps, vocab_size=240, **options
    )  # fmt: skip


def speech(bank: TinyBank, num_steps: int = STEPS, **options) -> UserSpeech:
    return UserSpeech(str(bank.folder), ["user"], num_steps, batch_size=4, row_seconds=4.0, val_part=None, **options)


@pytest.mark.parametrize(("adversarial", "spectral_steps"), [(False, 0), (True, 0), (True, 4), (True, 12)])
def test_codec_stage_learns(tmp_path: Path, adversarial: bool, spectral_steps: int) -> None:
    save_codec(Codec(TINY_CODEC), tmp_path / "codec", torch.float32)
    stage = CodecStage(12, TINY_CODEC, 2e-2, 2, str(tmp_path / "codec") if adversarial else None, adversarial, spectral_steps)
    batch = 0.3 * torch.sin(torch.arange(6 * 1920) / 30).repeat(2, 1) + 0.02 * noise(2, 6 * 1920)
    delay = TINY_CODEC.delay_samples

    def distance() -> float:
        with torch.no_grad():
            output = stage.codec.reconstruct(batch).audio
        return sum(float(v) for v in stage.spectral(output[:, delay:], batch[:, :-delay], list(range(len(SCALES)))))

    before, encoder = distance(), [p.detach().clone() for p in stage.codec.encoder_parameters()]
    judges = [p.detach().clone() for p in stage.discriminators.parameters()] if adversarial else []
    trainer = fit(stage, [batch] * 12)
    assert distance() < 0.8 * before
    moved = [not torch.equal(a, b) for a, b in zip(encoder, stage.codec.encoder_parameters(), strict=True)]
    assert not any(moved) if adversarial else sum(moved) > len(moved) / 2
    judged = adversarial and spectral_steps < 12
    if adversarial:
        assert all(torch.equal(a, b) != judged for a, b in zip(judges, stage.discriminators.parameters(), strict=True))
    assert set(trainer.callback_metrics) == {"mel", "magnitude", "pitch"} | ({"disc", "adv", "match"} if judged else set())


def test_crops_of_the_agent(bank: TinyBank) -> None:
    data = AgentCrops(str(bank.folder), ["agent"], 3, batch_size=4, crop_frames=8)
    data.setup("fit")
    batch = data.batch(1)
    assert batch.shape == (4, 8 * 1920) and batch.dtype == torch.float32 and 0.2 < batch.abs().max() < 0.5
    assert torch.equal(batch, data.batch(1)) and not torch.equal(batch, data.batch(2))
    assert [len(b) for b in data.train_dataloader()] == [4] * 3


def test_a_nanocodec_learns_one_voice_and_keeps_its_codes(bank: TinyBank, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_codec(NanoCodec(NanoConfig(encoder_width=2, decoder_width=64)), tmp_path / "codec", torch.float32)
    before = load_codec(tmp_path / "codec")
    data = AgentCrops(str(bank.folder), ["agent"], 2, batch_size=2, crop_frames=6, sample_rate_hz=22050)
    data.setup("fit")
    assert data.batch(0).shape == (2, 6 * 1764)
    stage = CodecStage(2, learning_rate=1e-3, warmup_steps=1, init_from=str(tmp_path / "codec"), adversarial=True)
    fit(stage, data)
    codes = [codec.eval().encode(data.batch(0)) for codec in (before, stage.codec)]
    assert torch.equal(*codes) and not torch.equal(before.decode(codes[0]), stage.codec.decode(codes[0]))
    with pytest.raises(UserError, match="the codec is of 22050 Hz and the crops are of 24000; set the data's sample_rate_hz to 22050"):
        fit(CodecStage(2, init_from=str(tmp_path / "codec")), AgentCrops(str(bank.folder), ["agent"], 2))


WHISPER = WhisperConfig(num_mels=20, token_width=16, num_layers=1, num_heads=2, ff_width=24, window_tokens=12, width=16)


@pytest.mark.parametrize("kind", ["fastconformer", "whisper"])
def test_encoder_stage_learns(bank: TinyBank, tmp_path: Path, kind: str) -> None:
    conversations(bank, tmp_path).setup("fit")  # makes the tokenizer
    data = speech(bank, 20, tokenizer=str(tmp_path / "tokenizer.json"))
    data.setup("fit")
    batch = data.batch(0)
    assert batch.audio.shape == (4, 50 * 1280) and batch.aligned.shape == (4, 100)
    assert len(batch.targets) == int(batch.target_lens.sum()) and (batch.aligned > 0).any()
    assert batch.heard is not None and batch.heard.shape == (4, 50) and (batch.heard > Vocab.eos).any()
    data.batch = lambda step: batch  # type: ignore[method-assign]
    stage = EncoderStage(20, WHISPER if kind == "whisper" else bank.model.encoder, 1e-2, warmup_steps=2)
    seen: list[float] = []
    step = stage.training_step
    stage.training_step = lambda *a: (seen.append(float((out := step(*a)).detach())), out)[1]  # type: ignore[method-assign]
    trainer = fit(stage, data)
    assert len(seen) == 20 and seen[-1] < 0.8 * seen[0]
    assert {"ctc", "align", "heard"} <= set(trainer.callback_metrics)


def test_rows_of_speech(bank: TinyBank) -> None:
    data = UserSpeech(str(bank.folder), ["user"], 1, row_seconds=12.0, val_part=None)
    data.setup("fit")
    rows = [data._row(data._utterances, np.random.default_rng(i)) for i in range(20)]
    assert max(len(row) for row in rows) > 1
    for row in rows:
        assert all(a.end_sample + 1600 <= b.start_sample for a, b in pairwise(row)) and all(turn.end_frame + 3 <= 150 for turn in row)


def test_words_missed_on_the_validation_part(bank: TinyBank, tmp_path: Path) -> None:
    conversations(bank, tmp_path).setup("fit")
    data = UserSpeech(str(bank.folder), ["user"], 2, str(tmp_path / "tokenizer.json"), 2, 4.0, val_part="user")
    stage = EncoderStage(2, bank.model.encoder, warmup_steps=2)
    trainer = fit(stage, data, limit_train_batches=2)
    assert 0 < float(trainer.callback_metrics["val_missed"]) <= 1 and float(trainer.callback_metrics["val_cer"]) > 0


def test_characters_are_aligned_to_their_time() -> None:
    words = (Word("ab", 0, 3200), Word("c!", 6400, 7680))
    row = np.zeros(30, np.int64)
    utterance = Utterance("u", "ab c!", "v", np.zeros(8000, np.int16), 16000, words)
    align_characters(utterance, 1280, row)  # 0.08 s in, and 0.1 s late: slots from (1280 + 1600) / 640
    assert row.tolist() == [0] * 4 + [2, 2, 2, 3, 3] + [0] * 5 + [4] * 2 + [0] * 14
    row[:] = 0
    align_characters(dataclasses.replace(utterance, words=()), 1280, row)
    assert row.tolist() == [0] * 4 + [-100] * 14 + [0] * 12  # the whole utterance, 0.1 s late


def test_edit_distance_and_masks() -> None:
    assert [edit_distance(list(map(ord, a)), list(map(ord, b))) for a, b in (("kitten", "sitting"), ("", "abc"), ("ab", "ab"))] == [3, 3, 0]
    ramp = torch.arange(40.0).expand(20, 2, 40)
    warped = warp_features(ramp, torch.Generator().manual_seed(0))
    ends = warped[:, 0, 30] / 30
    assert 0.88 <= ends.min() < 0.93 and 1.07 < ends.max() <= 1.12 and torch.equal(warped[:, 0], warped[:, 1])
    assert torch.allclose(warped[:, 0, 15] / 15, ends, atol=1e-5) and warped.max() <= 39
    mel = torch.ones(3, 400, 40)
    masked = mask_features(mel, torch.Generator().manual_seed(0))
    assert mel.min() == 1 and 0 < (masked == 0).float().mean() < 0.7
    assert torch.equal(masked, mask_features(mel, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("alone", [False, True])
def test_dialogue_stage_learns(bank: TinyBank, tmp_path: Path, alone: bool) -> None:
    data = conversations(bank, tmp_path, num_steps=12, speak_fraction=1.0 if alone else 0.3)
    data.setup("fit")
    fixed = data.batch(0)
    assert (fixed.audio is None) == alone and fixed.scripted.all() == alone
    data.batch = lambda step: fixed  # type: ignore[method-assign]
    stage = DialogueStage(12, bank.model, 1e-2, 1e-2, warmup_steps=2, corruption=0.0)
    seen: list[float] = []
    step = stage.training_step
    stage.training_step = lambda *a: (seen.append(float((out := step(*a)).detach())), out)[1]  # type: ignore[method-assign]
    fit(stage, data)
    assert len(seen) == 12 and seen[-1] < 0.8 * seen[0]
    assert stage.model is not None and stage.model.config.vocab_size == data.vocab.size
    assert stage.model.config.silence_codes == tuple(data.silence.tolist())
    assert torch.equal(stage.model.fusion.text.char_ids, data.vocab.char_ids())


def test_the_encoder_rests_while_it_is_frozen(bank: TinyBank, tmp_path: Path) -> None:
    states: list[dict] = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *args) -> None:
            states.append({k: v.clone() for k, v in module.model.encoder.layers.state_dict().items()})

    fit(DialogueStage(5, bank.model, freeze_encoder_steps=3), conversations(bank, tmp_path, 5), callbacks=[Watch()])
    same = [all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(states, states[1:], strict=False)]
    assert same == [True, True, False, False]
    states.clear()
    fit(DialogueStage(3, bank.model, freeze_encoder_steps=None), conversations(bank, tmp_path, 3), callbacks=[Watch()])
    assert len(states) == 3 and all(torch.equal(states[0][k], states[2][k]) for k in states[0])


@pytest.mark.parametrize("name", ["encoder", "dialogue"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(bank: TinyBank, tmp_path: Path, name: str) -> None:
    def parts():
        torch.manual_seed(4)
        if name == "encoder":
            return EncoderStage(STEPS, bank.model.encoder, warmup_steps=2), speech(bank)
        return DialogueStage(STEPS, bank.model, warmup_steps=2, freeze_encoder_steps=2), conversations(bank, tmp_path)

    stage, data = parts()
    saver = ModelCheckpoint(dirpath=tmp_path / "checkpoints", filename="{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = fit(stage, data, enable_checkpointing=True, callbacks=[saver], gradient_clip_val=1.0)
    assert trainer.global_step == STEPS
    resumed, data = parts()
    steps: list[int] = []
    make = data.batch
    data.batch = lambda step: (steps.append(step), make(step))[1]  # type: ignore[method-assign]
    trainer = fit(resumed, data, ckpt=tmp_path / "checkpoints" / "step=3.ckpt", gradient_clip_val=1.0)
    assert trainer.global_step == STEPS and steps == [3, 4, 5]
    expected = stage.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in resumed.state_dict().items())
    early = stage_weights(str(tmp_path / "checkpoints" / "step=3.ckpt"), "")
    assert not all(torch.equal(v, expected[k]) for k, v in early.items())


def test_batches_of_conversations(bank: TinyBank, tmp_path: Path) -> None:
    data = conversations(bank, tmp_path, batch_size=6)
    data.setup("fit")
    batch = data.batch(2)
    assert batch.text.shape == (6, 101) and batch.codes.shape == (6, 100, 2) and batch.audio.shape == (6, 100 * 1280)
    assert 0 < batch.scripted.sum() < 6 and int(batch.target_lens.sum()) == len(batch.targets)
    assert not batch.target_lens[batch.scripted].any() and batch.target_lens[~batch.scripted].all()
    assert (batch.text == Vocab.bos).any(1).all() and (batch.codes[~batch.speaking] == torch.from_numpy(data.silence)).all()
    again, other = data.batch(2), data.batch(3)
    tensors = [f.name for f in dataclasses.fields(ConversationBatch) if f.name not in ("told", "read")]
    assert batch.told is None and batch.read is None and all(torch.equal(getattr(batch, name), getattr(again, name)) for name in tensors)
    assert not torch.equal(batch.text, other.text)


def test_rows_without_sound_teach_words_alone(bank: TinyBank, tmp_path: Path) -> None:
    data = conversations(
        bank,
        tmp_path,
        20,
        read_rows=3,
        speak_fraction=0.0,
        composer=ComposerConfig(num_frames=90),
        read_composer=ComposerConfig(num_frames=70),
    )
    data.setup("fit")
    batch = data.batch(0)
    read = batch.read
    assert read is not None and read.audio is None and batch.text.shape[1] == 91 and read.text.shape == (3, 71) and not read.scripted.any()
    assert (read.codes[read.speaking] == -1).all() and read.speaking.any() and (read.heard > Vocab.eos).any(1).all()
    data.batch = lambda step: batch  # type: ignore[method-assign]
    stage = DialogueStage(20, bank.model, learning_rate=1e-2, warmup_steps=2, freeze_encoder_steps=None, loss=LossConfig(read=0.7, ctc=0.0))
    seen: list[tuple[float, float]] = []
    stage.log_dict = lambda logs, **_: seen.append((float(logs["text"].detach()), float(logs.get("read_text", torch.tensor(0.0)).detach())))  # type: ignore
    fit(stage, data)
    assert seen[-1][0] < 0.8 * seen[0][0] and seen[-1][1] < 0.8 * seen[0][1]
    generator = torch.Generator().manual_seed(0)
    losses, alone = stage._losses(read, generator), stage.training_step(dataclasses.replace(batch, read=None), 5)
    assert torch.isfinite(losses.total) and not losses.heard and not losses.ctc
    generator = torch.Generator().manual_seed(5 * 1009)
    stage._losses(dataclasses.replace(batch, read=None), generator)
    assert float(stage.training_step(batch, 5)) == pytest.approx(float(alone) + 0.7 * float(stage._losses(read, generator).total), rel=1e-4)


def test_losses_are_weighted_means(bank: TinyBank) -> None:
    from duplex.model import DuplexModel, Logits, TrainOutput

    model = DuplexModel(bank.model)
    text = torch.tensor([[0, Vocab.bos, 9, Vocab.eos, 0], [0, 9, 9, 9, 9]])
    codes, speaking = torch.zeros(2, 4, 2, dtype=torch.long), torch.tensor([[True, False, False, True], [False] * 4])
    batch = ConversationBatch(text, codes, speaking, torch.tensor([False, True]), None, torch.zeros(2, 4), torch.zeros(0), torch.zeros(0))
    logits = Logits(torch.zeros(2, 4, 40), torch.zeros(2, 4, 2, 7))
    config = LossConfig(text=2.0, sil=0.5, bos=3.0, eos=4.0, token=1.5, silent_codes=0.1, scripted_text=0.1)
    even = dialogue_losses(model, TrainOutput(logits, torch.zeros(2, 4, 16), None), batch, config)
    assert float(even.text) == pytest.approx(np.log(40), abs=1e-4)
    assert float(even.codes) == pytest.approx(2 * np.log(4 * 3), abs=1e-4)  # summed over codebooks and digits
    assert float(even.total) == pytest.approx(2 * np.log(40) + 2 * np.log(12), abs=1e-4)
    logits.text[0, 0, Vocab.bos] = 50.0  # one target out of bos 3, token 1.5, eos 4, sil 0.5 and 4 scripted tokens of 0.15
    right = dialogue_losses(model, TrainOutput(logits, torch.zeros(2, 4, 16), None), batch, config)
    assert float(right.text) == pytest.approx(np.log(40) * 6.6 / 9.6, abs=1e-4)
    logits.levels[0, 1, :, 0] = 50.0  # a silent frame: 0.1 of 2 * 1 + 6 * 0.1
    assert float(dialogue_losses(model, TrainOutput(logits, torch.zeros(2, 4, 16), None), batch, config).codes) == pytest.approx(
        2 * (np.log(3) + np.log(4) * 2.5 / 2.6), abs=1e-4
    )


def test_corruption() -> None:
    codes = torch.arange(4 * 200 * 2).view(4, 200, 2)
    assert torch.equal(corrupt_codes(codes, torch.Generator().manual_seed(0), 0.0), codes)
    damaged = corrupt_codes(codes, torch.Generator().manual_seed(0), 0.3)
    unknown, moved = damaged == -1, (damaged != codes) & (damaged != -1)
    assert 0 < unknown.float().mean() < 0.3 and 0 < moved.float().mean() < 0.3
    assert torch.equal(unknown[..., 0], unknown[..., 1])
    assert all(set(row[row >= 0].tolist()) <= set(own.flatten().tolist()) for row, own in zip(damaged, codes, strict=True))


def test_a_trained_model_is_exported_and_loads(bank: TinyBank, tmp_path: Path) -> None:
    data, stage = conversations(bank, tmp_path, 1), DialogueStage(1, bank.model)
    fit(stage, data).save_checkpoint(tmp_path / "last.ckpt")
    export_model(str(tmp_path / "last.ckpt"), str(tmp_path / "out"), str(bank.codec), str(tmp_path / "tokenizer.json"), torch.float32)
    speaker = load_speaker(str(tmp_path / "out"))
    assert all(torch.equal(v, speaker.model.state_dict()[k]) for k, v in stage.model.state_dict().items())
    assert speaker.model.silence_codes.tolist() == data.silence.tolist() == speaker.codec.silence_codes.tolist()
    assert speaker.model.config == stage.model.config
    codec_stage = CodecStage(1, TINY_CODEC, warmup_steps=1)
    fit(codec_stage, [0.1 * noise(2, 4 * 1920)]).save_checkpoint(tmp_path / "codec.ckpt")
    export_codec(str(tmp_path / "codec.ckpt"), str(tmp_path / "codec"), torch.float32)
    with pytest.raises(UserError, match="codec.ckpt holds no duplex model"):
        export_model(str(tmp_path / "codec.ckpt"), str(tmp_path / "no"), str(bank.codec), str(tmp_path / "tokenizer.json"), torch.float32)


def test_a_model_that_heard_through_another_encoder_keeps_all_but_its_ears(bank: TinyBank, tmp_path: Path) -> None:
    data, first = conversations(bank, tmp_path, 1), DialogueStage(1, bank.model)
    fit(first, data).save_checkpoint(tmp_path / "last.ckpt")
    other = dataclasses.replace(bank.model, encoder=WHISPER)
    second = DialogueStage(1, other, learning_rate=0.0, encoder_learning_rate=0.0, init_model=str(tmp_path / "last.ckpt"))
    fit(second, conversations(bank, tmp_path, 1))
    assert first.model is not None and second.model is not None
    before, after = first.model.state_dict(), second.model.state_dict()
    kept = [k for k in before if not k.startswith(("encoder.", "adapter.", "recognizer.", "fusion.heard_weight"))]
    assert len(kept) > 10 and all(torch.equal(before[k], after[k]) for k in kept)
    assert not after["adapter.proj.weight"].any()


def test_a_model_gains_a_head_for_presence_and_loses_it(bank: TinyBank, tmp_path: Path) -> None:
    wider, source = dataclasses.replace(bank.model, presence_head=True), None
    for i, config in enumerate((bank.model, wider, wider, bank.model)):
        stage = DialogueStage(1, config, learning_rate=1e-2 if i == 1 else 0.0, warmup_steps=1, init_model=source)
        fit(stage, conversations(bank, tmp_path, 1)).save_checkpoint(tmp_path / f"{i}.ckpt")
        source = str(tmp_path / f"{i}.ckpt")
    heads = [stage_weights(str(tmp_path / f"{i}.ckpt"), "model.").get("presence.weight") for i in range(4)]
    assert heads[0] is None and heads[3] is None and heads[1].any() and torch.equal(heads[1], heads[2])  # type: ignore[union-attr]


def test_a_missing_bank_part_is_one_sentence(bank: TinyBank, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no utterance bank part at .*nobody"):
        fit(EncoderStage(1, bank.model.encoder), UserSpeech(str(bank.folder), ["nobody"], 1, augment=AugmentConfig()))


def test_a_stage_may_start_from_an_exported_checkpoint(tiny_checkpoint: Path) -> None:
    exported = load_speaker(str(tiny_checkpoint)).model.state_dict()
    weights = stage_weights(str(tiny_checkpoint), "model.")
    assert weights.keys() == exported.keys()
    assert all(torch.equal(weights[k], exported[k]) for k in exported)


@pytest.mark.parametrize("values", ["zero", "normal"])
def test_the_users_weight_may_rest_and_vectors_of_codes_start_anew(bank: TinyBank, tmp_path: Path, values: str) -> None:
    first = DialogueStage(1, bank.model)
    fit(first, conversations(bank, tmp_path, 1)).save_checkpoint(tmp_path / "last.ckpt")
    start = {"learning_rate": 0.0, "encoder_learning_rate": 0.0, "init_model": str(tmp_path / "last.ckpt")}
    second = DialogueStage(1, bank.model, user_weight=0.25, code_vectors=values, **start)  # type: ignore[arg-type]
    fit(second, conversations(bank, tmp_path, 1))
    assert first.model is not None and second.model is not None
    assert float(second.model.fusion.user_weight) == 0.25 and not second.model.fusion.user_weight.requires_grad
    before, after = first.model.fusion.codes.level.weight, second.model.fusion.codes.level.weight
    assert not torch.equal(before, after) and bool(after.any()) == (values == "normal")
    changed = [k for k, v in first.model.state_dict().items() if not torch.equal(v, second.model.state_dict()[k])]
    assert {k.split(".")[1] for k in changed} == {"codes", "user_weight", "proj"}
    heard = [stage.model.fusion.user_weight * stage.model.adapter.proj.weight for stage in (first, second)]  # type: ignore[union-attr]
    torch.testing.assert_close(*heard)  # what is heard is as loud as before
    with pytest.raises(UserError, match="user_weight 0.0 is not above 0; give such a number, or null to learn it"):
        fit(DialogueStage(1, bank.model, user_weight=0.0), conversations(bank, tmp_path, 1))
