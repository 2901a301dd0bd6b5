"""Make the demo: short scenes with the sounds that go with them, and a small ImageBind that knows them.

    python tests/demo/make_demo.py media     # audio/ and video/: 24 pairs, and captions.csv
    python tests/demo/make_demo.py train     # imagebind_demo.pth, on other scenes of the same making
    python tests/demo/make_demo.py captions  # captions.csv alone, and a new text tower in imagebind_demo.pth

A scene is a kind of motion, a colour, and a rate. Its sound has the kind as timbre, the colour as
pitch (red is low, violet is high), and the rate as rhythm; the picture shows as many things as the
sound has beats a second; its caption says all three. Whoever hears a scene can so tell which of the 24
it is, and nothing more: what the small model says of real media means nothing.
"""

from __future__ import annotations

import argparse
import colorsys
import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from imagebind import ModalityType, data  # noqa: E402
from imagebind.data import audio, video  # noqa: E402
from imagebind.models.imagebind_model import (  # noqa: E402
    IMAGEBIND_HUGE,
    ImageBindModel,
    load_model,
    save_model,
)

HEIGHT, WIDTH, FPS = 144, 192, 25
LOWEST_HZ, OCTAVES = 180, 3
MAX_RATE = 6  # beats a second
KINDS = {  # and what a caption says of them
    "bounce": "{n} {color} ball{s} bouncing, plucked at every beat",
    "sweep": "{n} {color} bar{s} rising and falling, with a gliding note",
    "pulse": "{n} {color} ring{s} growing and shrinking, with a swelling note",
    "spin": "a wheel of {n} {color} spoke{s} turning, with a chopped buzz",
    "rain": "{color} rain that hisses, {n} beat{s} a second",
    "scroll": "{n} {color} stripe{s} passing by, with two notes in turn",
}
NUMBERS = ("one", "two", "three", "four", "five", "six")
HUES = {"red": 0.04, "orange": 0.1, "yellow": 0.2, "green": 0.42, "cyan": 0.54, "blue": 0.7, "violet": 1.0}

NOTE = "demo weights, trained on drawn scenes: these scores say nothing about real media"
TOWERS = {
    modality: replace(IMAGEBIND_HUGE[modality], width=64, n_blocks=2, n_heads=4)
    for modality in (ModalityType.VISION, ModalityType.AUDIO)
}
TEXT_TOWER = replace(IMAGEBIND_HUGE[ModalityType.TEXT], width=10, n_blocks=3, n_heads=2)
TRAIN_SCENES, BATCH, STEPS, LEARNING_RATE = 4000, 64, 1000, 1e-3
TEXT_STEPS, TEXT_LEARNING_RATE = 2000, 3e-3

AUDIO_FORMATS = {".wav": "pcm_s16le", ".mp3": "mp3", ".flac": "flac", ".m4a": "aac", ".ogg": "libopus"}
VIDEO_FORMATS = {
    ".mp4": "libx264",
    ".mkv": "libx264",
    ".mov": "libx264",
    ".webm": "libvpx-vp9",
    ".avi": "mpeg4",
    ".flv": "flv",
}


@dataclass(frozen=True)
class Scene:
    """What is seen and heard."""

    kind: str
    tone: float  # [0, 1]: hue and pitch
    rate: int  # 1 to MAX_RATE: beats a second, and things in the picture
    phase: float  # [0, 1): of the beat
    seed: int  # of all that does not matter

    @classmethod
    def draw(cls, rng: np.random.Generator, **known) -> Scene:
        scene = {
            "kind": str(rng.choice(list(KINDS))),
            "tone": float(rng.random()),
            "rate": int(rng.integers(1, MAX_RATE + 1)),
            "phase": float(rng.random()),
            "seed": int(rng.integers(2**31)),
        }
        return cls(**{**scene, **known})

    @property
    def hue(self) -> float:
        return 0.8 * self.tone

    @property
    def caption(self) -> str:
        color = next(color for color, end in HUES.items() if self.hue < end)
        return KINDS[self.kind].format(n=NUMBERS[self.rate - 1], color=color, s="s" if self.rate > 1 else "")


def picture(scene: Scene, seconds: float) -> np.ndarray:
    """Draw the frame of a scene at a time: (HEIGHT, WIDTH, 3) uint8."""
    rng = np.random.default_rng(scene.seed)  # the same in all frames
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    n = scene.rate
    beat = seconds * n + scene.phase
    swing = abs(np.sin(np.pi * beat))  # 0 at every beat
    centers = (np.arange(n) + 0.5) * WIDTH / n
    if scene.kind == "bounce":  # n balls that touch the ground at every beat
        height = HEIGHT - 20 - 80 * swing
        shape = np.any([np.hypot(x - c, y - height) < 11 for c in centers], axis=0)
    elif scene.kind == "sweep":  # n bars that rise and fall
        top = HEIGHT * (0.15 + 0.6 * swing)
        shape = np.any([(abs(y - top - 9 * i) < 2.5) & (x > 8) & (x < WIDTH - 8) for i in range(n)], axis=0)
    elif scene.kind == "pulse":  # n rings that grow and shrink
        radius = np.hypot(x - WIDTH / 2, y - HEIGHT / 2) / (0.6 + 0.4 * swing)
        shape = np.any([abs(radius - 10 * (i + 1)) < 2.5 for i in range(n)], axis=0)
    elif scene.kind == "spin":  # a wheel of n spokes, one of which passes at every beat
        angle = np.arctan2(y - HEIGHT / 2, x - WIDTH / 2) * n / (2 * np.pi) + beat
        shape = ((angle % 1) < 0.3) & (np.hypot(x - WIDTH / 2, y - HEIGHT / 2) < 62)
    elif scene.kind == "rain":  # drops, the more of them the faster
        columns, starts = rng.random(14 * n) * WIDTH, rng.random(14 * n)
        rows = (starts + seconds * 0.9) % 1 * HEIGHT
        shape = np.zeros((HEIGHT, WIDTH), bool)
        for column, row in zip(columns.astype(int), rows.astype(int), strict=True):
            shape[row : row + 9, column : column + 3] = True
    else:  # scroll: n stripes that pass by
        shape = ((x / WIDTH * n + beat) % 1) < 0.45
    color = np.array(colorsys.hsv_to_rgb(scene.hue, 1, rng.uniform(0.8, 1)))
    ground = rng.uniform(0.02, 0.15)
    image = np.where(shape[..., None], color, ground) + rng.normal(0, 0.01, (HEIGHT, WIDTH, 1))
    return (image.clip(0, 1) * 255).astype(np.uint8)


def sound(scene: Scene, seconds: float) -> np.ndarray:
    """Make the sound of a scene from its start: (T,) float32 at data.SAMPLE_RATE."""
    rng = np.random.default_rng(scene.seed)
    t = np.arange(int(seconds * data.SAMPLE_RATE)) / data.SAMPLE_RATE
    hz = LOWEST_HZ * 2 ** (OCTAVES * scene.tone)
    beat = t * scene.rate + scene.phase
    since = beat % 1 / scene.rate  # seconds since the last beat
    swing = abs(np.sin(np.pi * beat))
    tone = np.sin(2 * np.pi * hz * t)
    if scene.kind == "bounce":  # plucked at every beat
        wave = tone * np.exp(-since * 18)
    elif scene.kind == "sweep":  # a glide up and down
        wave = np.sin(2 * np.pi * np.cumsum(hz * (1 + 0.5 * swing)) / data.SAMPLE_RATE)
    elif scene.kind == "pulse":  # swells
        wave = tone * (0.1 + 0.9 * swing)
    elif scene.kind == "spin":  # a buzz, chopped
        wave = np.sign(tone) * (since * scene.rate < 0.5) * 0.6
    elif scene.kind == "rain":  # hiss around the pitch
        wave = tone * np.convolve(rng.normal(0, 1, len(t)), np.ones(12) / 12, "same") * np.exp(-since * 6) * 2
    else:  # scroll: two notes in turn
        wave = np.where(beat % 2 < 1, tone, np.sin(3 * np.pi * hz * t)) * 0.8
    wave = wave * rng.uniform(0.2, 0.6) + rng.normal(0, 0.002, len(t))
    return wave.clip(-1, 1).astype(np.float32)


# ------------------------------------------------------------------------------------------------
# The 24 pairs
# ------------------------------------------------------------------------------------------------


def write_audio(path: Path, samples: np.ndarray) -> None:
    """Encode mono samples at data.SAMPLE_RATE, by the file's suffix."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(AUDIO_FORMATS[path.suffix], rate=data.SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), "s16", "mono")
        frame.sample_rate = data.SAMPLE_RATE
        frame.time_base = Fraction(1, data.SAMPLE_RATE)
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    """Encode frames (H, W, 3) uint8 at FPS, by the file's suffix."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(VIDEO_FORMATS[path.suffix], rate=FPS)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 150_000
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))


def make_media(folder: Path) -> None:
    """Write the held-out pairs: four scenes of each kind, of different tones, rates and lengths."""
    for number in range(len(held_out_scenes())):
        write_pair(folder, number)


def pair_paths(folder: Path, number: int) -> tuple[Path, Path]:
    """Name the files of a held-out pair: sound and video, of all formats in turn."""
    name, suffixes = list(held_out_scenes())[number], (list(AUDIO_FORMATS), list(VIDEO_FORMATS))
    return tuple(
        folder / side / f"{name}{of_side[number % len(of_side)]}"
        for side, of_side in zip(("audio", "video"), suffixes, strict=True)
    )


def write_pair(folder: Path, number: int) -> None:
    """Write a held-out pair."""
    scene, seconds = list(held_out_scenes().values())[number]
    audio, video = pair_paths(folder, number)
    for path in (audio, video):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(audio, sound(scene, seconds))
    write_video(video, [picture(scene, frame / FPS) for frame in range(int(seconds * FPS))])


def held_out_scenes() -> dict[str, tuple[Scene, float]]:
    """Draw the scenes of the pairs: name -> scene, seconds."""
    rng = np.random.default_rng(20260101)
    scenes = {}
    for kind in KINDS:
        rates = rng.choice(np.arange(1, MAX_RATE + 1), 4, replace=False)
        for i, rate in enumerate(rates):
            tone = (i + rng.uniform(0.2, 0.8)) / 4
            scene = Scene.draw(rng, kind=kind, tone=float(tone), rate=int(rate))
            scenes[f"{kind}_{i + 1}"] = scene, rng.uniform(2.4, 4)
    return scenes


def write_captions(path: Path) -> None:
    """Write what is seen and heard in each pair."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "caption"))
        writer.writerows((name, scene.caption) for name, (scene, _) in held_out_scenes().items())


# ------------------------------------------------------------------------------------------------
# The small model
# ------------------------------------------------------------------------------------------------


def training_pair(scene: Scene, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one clip of a scene's sound (1, 128, 204) and one of its picture (3, 2, 224, 224) uint8."""
    clip = torch.from_numpy(sound(scene, data.CLIP_SECONDS))[None]
    mel = (audio.log_mel(clip - clip.mean())[None] - audio.MEL_MEAN) / audio.MEL_STD
    start = rng.uniform(0, 2)
    offset = video.crop_offsets(WIDTH * data.SIZE // HEIGHT)[rng.integers(data.CROPS)]
    frames = []
    for seconds in (start, start + data.CLIP_SECONDS - 1 / FPS):
        frame = torch.from_numpy(picture(scene, seconds)).permute(2, 0, 1)
        frames.append((video.crop(video.resize_short_side(frame), offset) * 255).round().byte())
    return mel, torch.stack(frames, dim=1)


def training_set(rng: np.random.Generator) -> tuple[list[Scene], torch.Tensor, torch.Tensor]:
    """Make scenes, their sounds (TRAIN_SCENES, 1, 128, 204) and their pictures, as training_pair does."""
    scenes, pairs = [], []
    for _ in range(TRAIN_SCENES):
        scenes.append(Scene.draw(rng))
        pairs.append(training_pair(scenes[-1], rng))
    return scenes, *(torch.stack(side) for side in zip(*pairs, strict=True))


def normalized(clips: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (video.RGB_MEAN, video.RGB_STD))
    return (clips / 255 - mean) / std


def fit(
    model: torch.nn.Module,
    what: str,
    n_steps: int,
    rate: float,
    decay: float,
    loss_of: Callable[[], torch.Tensor],
) -> None:
    """Take steps down a loss, that of a new batch each time it is asked for."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, n_steps)
    for step in range(n_steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"{what}: step {step + 1}  loss {loss.item():.3f}", flush=True)


def train(mels: torch.Tensor, clips: torch.Tensor, rng: np.random.Generator) -> ImageBindModel:
    """Train towers so that a sound is nearest to its own picture (InfoNCE, both ways)."""
    torch.manual_seed(0)
    model = ImageBindModel(TOWERS, NOTE).train()
    labels = torch.arange(BATCH)

    def loss_of() -> torch.Tensor:
        chosen = torch.from_numpy(rng.choice(TRAIN_SCENES, BATCH, replace=False))
        rows = model({ModalityType.AUDIO: mels[chosen], ModalityType.VISION: normalized(clips[chosen])})
        # The audio tower's scale of 20 is the inverse temperature.
        logits = rows[ModalityType.AUDIO] @ rows[ModalityType.VISION].T
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    fit(model, "audio and vision", STEPS, LEARNING_RATE, 0.05, loss_of)
    return model.eval()


def add_text_tower(
    model: ImageBindModel, scenes: list[Scene], mels: torch.Tensor, clips: torch.Tensor
) -> ImageBindModel:
    """Train a text tower so that a caption is nearest to its sounds and pictures; others stay as they are.

    Tokens that no caption has are zeros, which take little room in a repository.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        rows = {modality: [] for modality in TOWERS}
        for i in range(0, TRAIN_SCENES, BATCH):
            part = {
                ModalityType.AUDIO: mels[i : i + BATCH],
                ModalityType.VISION: normalized(clips[i : i + BATCH]),
            }
            for modality, of_part in model(part).items():
                rows[modality].append(F.normalize(of_part, dim=-1))
        targets = [torch.cat(of_modality) for of_modality in rows.values()]
    tokens = data.load_and_transform_text([scene.caption for scene in scenes], "cpu")
    towers = {modality: tower.config for modality, tower in model.towers.items()} | {"text": TEXT_TOWER}
    whole = ImageBindModel(towers, NOTE)
    whole.towers.update({modality: model.towers[modality] for modality in TOWERS})
    text = whole.towers[ModalityType.TEXT].train()

    def loss_of() -> torch.Tensor:
        chosen = torch.from_numpy(rng.choice(TRAIN_SCENES, BATCH, replace=False))
        same = (tokens[chosen, None] == tokens[None, chosen]).all(-1).float()
        shares = same / same.sum(1, keepdim=True)  # scenes with equal captions are right alike
        logits = [text(tokens[chosen]) @ target[chosen].T for target in targets]
        return sum(F.cross_entropy(x, shares) + F.cross_entropy(x.T, shares) for x in logits) / 4

    fit(text, "text", TEXT_STEPS, TEXT_LEARNING_RATE, 0.01, loss_of)
    unused = torch.ones(TEXT_TOWER.vocabulary, dtype=torch.bool)
    unused[tokens.unique()] = False
    text.stem.weight.data[unused] = 0
    text.half()
    return whole.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's media and captions, or train its model.")
    parser.add_argument("what", choices=("media", "train", "captions"))
    what = parser.parse_args().what
    path = FOLDER / "imagebind_demo.pth"
    if what != "train":
        write_captions(FOLDER / "captions.csv")
    if what == "media":
        make_media(FOLDER)
        return
    rng = np.random.default_rng(0)
    scenes, mels, clips = training_set(rng)
    model = train(mels, clips, rng) if what == "train" else load_model(path)
    save_model(add_text_tower(model, scenes, mels, clips), path)


if __name__ == "__main__":
    main()
