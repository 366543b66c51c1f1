"""Watches what the model says while it trains: a fixed set of conversations, decoded free-running, in words and in sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
import torch
from torch import Tensor

from codec.checkpoint import load_codec
from duplex.clock import FrameClock
from duplex.generate import Tokens, converse
from duplex.vocab import Vocab
from train.augment import AugmentConfig
from train.bank import read_part
from train.composer import Cast, ComposerConfig, compose, render_user
from train.timeline import Timeline


@dataclass(frozen=True)
class SpokenTurn:
    """One turn of the agent as its text channel has it: frames of BOS and EOS (or the end), and the text between."""

    start_frame: int
    end_frame: int
    text: str


def spoken_turns(tokens: list[int], vocab: Vocab) -> list[SpokenTurn]:
    """Split one row of text tokens into turns."""
    turns: list[SpokenTurn] = []
    start: int | None = None
    for frame, token in enumerate([*tokens, Vocab.eos]):
        if token == Vocab.bos and start is None:
            start = frame
        elif token == Vocab.eos and start is not None:
            turns.append(SpokenTurn(start, frame, vocab.decode(tokens[start:frame])))
            start = None
    return turns


@dataclass(frozen=True)
class TurnTaking:
    """Figures over uninterrupted turns of a set of timelines, from the text channel.

    Attributes:
        answered: Share of the user's turns after which a turn begins before the next.
        exact: Share of turns whose text is exactly the answer.
        gap_frames: Median frames from the user's end to BOS.
        false_starts: Turns that begin while the user speaks, a user turn.
        stopped: Share of interruptions after which EOS comes within 1.5 s.
    """

    answered: float
    exact: float
    gap_frames: float
    false_starts: float
    stopped: float


def turn_taking(timelines: list[Timeline], turns: list[list[SpokenTurn]]) -> TurnTaking:
    """Compare what was said with what the timelines ask for."""
    answered, exact, false_starts, count = 0, 0, 0, 0
    gaps: list[float] = []
    stopped: list[float] = []
    for timeline, spoken in zip(timelines, turns, strict=True):
        for i, user in enumerate(timeline.user):
            count += 1
            ends = timeline.user[i + 1].start_sample // 1280 if i + 1 < len(timeline.user) else timeline.num_frames
            first, last = user.start_sample // 1280, user.end_frame
            false_starts += sum(first < t.start_frame < last - 1 for t in spoken)
            if user.kind == "interruption" and any(t.start_frame < first < t.end_frame for t in spoken):
                stopped.append(any(first < t.end_frame <= first + 18 for t in spoken))
            own = [t for t in spoken if last - 1 <= t.start_frame < ends]
            if own:
                answered += 1
                gaps.append(own[0].start_frame - last)
                expected = next((a for a in timeline.agent if a.answers == i), None)
                exact += expected is not None and _same(own[0].text, expected.utterance.text, expected.interrupted)
    share = 1 / max(count, 1)
    return TurnTaking(
        answered * share, exact * share, float(np.median(gaps or [np.nan])), false_starts * share, float(np.mean(stopped or [np.nan]))
    )


def _same(said: str, expected: str, interrupted: bool) -> bool:
    return expected.startswith(said) if interrupted else said == expected


class DecodeTimelines(lightning.Callback):
    """Every `every_n_steps`, decodes fixed conversations of held-out voices and phrasings and logs them.

    Args:
        bank, user_part, answer_parts: Where the conversations come from.
        codec: Codec folder, to make sound.
        every_n_steps: How often.
        num_timelines: How many conversations.
        num_sounds: How many of them are also logged as stereo audio.
    """

    def __init__(
        self,
        bank: str,
        user_part: str,
        answer_parts: list[str],
        codec: str,
        every_n_steps: int = 200,
        num_timelines: int = 12,
        num_sounds: int = 1,
    ) -> None:
        self.bank, self.user_part, self.answer_parts, self.codec_dir = Path(bank), user_part, answer_parts, codec
        self.every_n_steps, self.num_timelines, self.num_sounds = every_n_steps, num_timelines, num_sounds
        self._timelines: list[Timeline] = []
        self._audio = torch.zeros(0)

    def _prepare(self) -> None:
        answers = {u.text: u for part in self.answer_parts for u in read_part(self.bank / part, fields=("codes",))}
        cast = Cast(list(read_part(self.bank / self.user_part)), answers)
        plain = AugmentConfig(speed=(1.0, 1.0), gain_db=(-6.0, -6.0), tilt=(0.0, 0.0))
        rngs = [np.random.default_rng((77, i)) for i in range(self.num_timelines)]
        self._timelines = [compose(cast, ComposerConfig(), plain, rng) for rng in rngs]
        self._audio = torch.from_numpy(np.stack([render_user(t, None, rng) for t, rng in zip(self._timelines, rngs, strict=True)]))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Decode when it is time, on rank 0; the others wait at the next step."""
        step = trainer.global_step
        if step == 0 or step % self.every_n_steps or not trainer.is_global_zero:
            return
        if not self._timelines:
            self._prepare()
        model, vocab = module.model, trainer.datamodule.vocab
        model.eval()
        tokens = converse(model, self._audio.to(module.device))
        model.train()
        turns = [spoken_turns(row, vocab) for row in tokens.text.tolist()]
        figures = turn_taking(self._timelines, turns)
        lines = [f"step {step}: {figures}"]
        for timeline, spoken in list(zip(self._timelines, turns, strict=True))[:6]:
            lines += [f"  {u.start_sample // 1280:4d} you   {u.utterance.text}" for u in timeline.user]
            lines += [f"  {t.start_frame:4d} agent {t.text}" for t in spoken]
        print("\n".join(lines), flush=True)
        writer = getattr(trainer.logger, "experiment", None)
        if hasattr(writer, "add_text"):
            writer.add_text("conversations", "\n".join(lines), step)
            for name, value in vars(figures).items():
                writer.add_scalar(f"decode/{name}", value, step)
            self._log_sound(writer, tokens, step)

    def _log_sound(self, writer, tokens: Tokens, step: int) -> None:
        codec = load_codec(self.codec_dir)
        with torch.inference_mode():
            for i in range(self.num_sounds):
                agent: Tensor = codec.decode(tokens.codes[i : i + 1].cpu())[0]
                writer.add_audio(f"agent/{i}", agent.clamp(-1, 1)[None], step, FrameClock().output_hz)
