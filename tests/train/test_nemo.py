"""`.nemo` archives: read whole, refused when they are cut short or would do more than be read."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from duplex.cache_aware import CacheAwareFastConformer
from duplex.config import CacheAwareConfig
from duplex.errors import UserError
from tests.duplex.test_cache_aware import SMALL, random_encoder
from train.importing import main
from train.nemo import read_encoder, read_nemo
from train.pretrained import load_encoder

ASR = {
    "target": "nemo.collections.asr.models.hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel",
    "preprocessor": {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor", "sample_rate": 16000, "normalize": "NA",
        "window_size": 0.025, "window_stride": 0.01, "window": "hann", "features": 16, "n_fft": 512, "frame_splicing": 1, "dither": 1e-5,
    },
    "encoder": {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder", "feat_in": 16, "n_layers": 2, "d_model": 16, "n_heads": 2,
        "subsampling": "dw_striding", "subsampling_factor": 8, "subsampling_conv_channels": 8, "causal_downsampling": True,
        "ff_expansion_factor": 2, "self_attention_model": "rel_pos", "att_context_size": [4, 1], "att_context_style": "chunked_limited",
        "xscaling": True, "untie_biases": True, "conv_kernel_size": 5, "conv_norm_type": "layer_norm", "conv_context_size": "causal",
    },
}  # fmt: skip


def write_nemo(path: Path, config: dict, weights: object, prefix: str = "./", extra: tarfile.TarInfo | None = None) -> Path:
    """A tar as NeMo writes it."""
    pickled = io.BytesIO()
    torch.save(weights, pickled)
    with tarfile.open(path, "w") as archive:
        for name, data in (("model_config.yaml", yaml.safe_dump(config).encode()), ("model_weights.ckpt", pickled.getvalue())):
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        if extra is not None:
            archive.addfile(extra, io.BytesIO(b"x" * extra.size))
    return path


def asr_weights() -> dict[str, Tensor]:
    """Those of an ASR model around the encoder."""
    own = {f"encoder.{k}": v for k, v in random_encoder(SMALL).state_dict().items() if not k.startswith("ctc.")}
    others = {"preprocessor.featurizer.fb": torch.zeros(1, 16, 257), "decoder.prediction.embed.weight": torch.zeros(4, 4)}
    return own | others


def changed(part: str, **values) -> dict:
    return {**ASR, part: {**ASR[part], **values}}


@pytest.mark.parametrize("prefix", ["./", ""])
def test_an_encoder_comes_whole(tmp_path: Path, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_nemo(tmp_path / "asr.nemo", ASR, asr_weights(), prefix)
    encoder = read_encoder(read_nemo(str(path)))
    assert encoder.config == SMALL
    assert all(torch.equal(v, asr_weights()[f"encoder.{k}"]) for k, v in encoder.state_dict().items() if not k.startswith("ctc."))
    main([str(path), str(tmp_path / "encoder")])
    assert "an encoder of 2 layers, width 16, 1 frames of look-ahead" in capsys.readouterr().out
    again = CacheAwareFastConformer(SMALL)
    load_encoder(again, SMALL, tmp_path / "encoder")
    audio = torch.randn(1, 8 * 1280)
    assert torch.equal(again(audio), encoder(audio)) is True
    with pytest.raises(UserError, match="the config's encoder has num_layers 17 where .* has 2, left_frames 70 where .* has 4; write"):
        load_encoder(again, dataclasses.replace(SMALL, num_layers=17, left_frames=70), tmp_path / "encoder")
    with pytest.raises(UserError, match="is no imported encoder; make it with `duplex import"):
        load_encoder(again, SMALL, tmp_path)


def test_the_first_of_several_contexts_counts(tmp_path: Path) -> None:
    several = changed("encoder", att_context_size=[[8, 0], [4, 1]], subsampling_conv_channels=-1, use_bias=False, xscaling=False)
    encoder = CacheAwareFastConformer(
        dataclasses.replace(SMALL, left_frames=8, right_frames=0, subsample_width=16, bias=False, scale_input=False)
    )
    weights = {f"encoder.{k}": v for k, v in encoder.state_dict().items() if not k.startswith("ctc.")}
    assert read_encoder(read_nemo(str(write_nemo(tmp_path / "a.nemo", several, weights)))).config == encoder.config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed("preprocessor", normalize="per_feature"), "has preprocessor.normalize 'per_feature'; the cache-aware encoder has 'NA'"),
        (changed("encoder", att_context_style="regular"), "has encoder.att_context_style 'regular'; .* has 'chunked_limited'"),
        (changed("encoder", causal_downsampling=False), "has encoder.causal_downsampling False"),
        (changed("encoder", conv_norm_type="batch_norm"), "has encoder.conv_norm_type 'batch_norm'; .* has 'layer_norm'"),
        ({"target": "nemo.collections.nlp.models.GPT"}, r"\(nemo.collections.nlp.models.GPT\) has preprocessor.sample_rate None"),
        (changed("encoder", n_layers=3), "tensor 'layers.2.conv.batch_norm.bias' is missing, and 36 more"),
        (changed("encoder", n_layers=1), "tensor 'layers.1.conv.batch_norm.bias' is unknown, and 36 more"),
        (changed("encoder", conv_kernel_size=9), r"depthwise_conv.weight is \(16, 1, 5\) in the file and \(16, 1, 9\) in the model"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, config: dict, message: str) -> None:
    archive = read_nemo(str(write_nemo(tmp_path / "a.nemo", config, asr_weights())))
    with pytest.raises(UserError, match=message):
        read_encoder(archive)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_a_truncated_archive_is_refused(tmp_path: Path, share: float) -> None:
    path = write_nemo(tmp_path / "a.nemo", ASR, asr_weights())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"a.nemo (is cut short|is no .nemo archive: it has no)"):
        read_nemo(str(path))


class Evil:
    """A pickle that runs code when it is loaded carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = write_nemo(tmp_path / "a.nemo", ASR, {"encoder.x": Evil(tmp_path / "ran")})
    with pytest.raises(UserError, match="holds a pickle of more than tensors, which could run any code; it is refused"):
        read_nemo(str(path))
    assert not (tmp_path / "ran").exists()


def link() -> tarfile.TarInfo:
    member = tarfile.TarInfo("tokenizer.model")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


@pytest.mark.parametrize("extra", [tarfile.TarInfo("../../.bashrc"), tarfile.TarInfo("/etc/cron.d/x"), link()])
def test_a_member_outside_the_archive_is_refused(tmp_path: Path, extra: tarfile.TarInfo) -> None:
    path = write_nemo(tmp_path / "a.nemo", ASR, asr_weights(), extra=extra)
    with pytest.raises(UserError, match=f"has the member '{extra.name}', which reaches out of the archive; it is refused"):
        read_nemo(str(path))


def test_what_is_no_archive_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nemo").write_text("not a tar")
    with pytest.raises(UserError, match="is cut short or no .nemo archive"):
        read_nemo(str(tmp_path / "a.nemo"))
    with pytest.raises(UserError, match="is damaged: its model_config.yaml or its model_weights.ckpt is no mapping"):
        read_nemo(str(write_nemo(tmp_path / "a.nemo", ASR, [1, 2])))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds 0 .nemo files; give the path of one"):
        read_nemo(str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(UserError, match=r"nvidia/asr is neither here .*download its \*.nemo into a folder"):
        read_nemo("nvidia/asr")


def test_the_published_config_is_the_default() -> None:
    published = changed(
        "encoder", n_layers=17, d_model=512, n_heads=8, subsampling_conv_channels=256, ff_expansion_factor=4, att_context_size=[70, 1],
        conv_kernel_size=9,
    )  # fmt: skip
    published["preprocessor"] = {**published["preprocessor"], "features": 80}
    from train.nemo import NemoArchive, _encoder_config

    assert _encoder_config(NemoArchive(Path("asr.nemo"), published, {})) == CacheAwareConfig()
