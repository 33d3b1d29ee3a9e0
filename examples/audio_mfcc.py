"""Features of recordings for a speech classifier: MFCCs of each file and of two shifted copies.

Speech comes from espeak-ng where that is installed, otherwise from a synthesiser of a few lines. Loading a file,
shifting its pitch and computing the coefficients with librosa takes some tens of milliseconds, but the first call of a
process takes seconds: librosa compiles what it needs. A worker pays for that once, not once a file.
"""

import shutil
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import librosa
import numpy as np
import soundfile
from _compare import compare

from amorsize_executor import AmorsizeExecutor

N_FILES = 60
RATE = 16_000  # samples a second
SENTENCES = (
    "Processes share nothing, and that is their strength.",
    "A chunk that is too large keeps the others waiting at the end.",
    "The quick brown fox jumps over the lazy dog, reads a book about queues, and falls asleep on page three.",
    "Measure first.",
)


def make_recordings(folder: Path, n_files: int = N_FILES) -> list[Path]:
    """Write WAV files of some seconds each."""
    espeak = shutil.which("espeak-ng")
    paths = [folder / f"{number:03}.wav" for number in range(n_files)]
    for number, path in enumerate(paths):
        text, pitch, speed = SENTENCES[number % len(SENTENCES)], 20 + number, 120 + 2 * number
        if espeak:
            subprocess.run([espeak, "-p", str(pitch), "-s", str(speed), "-w", str(path), text], check=True)
        else:
            soundfile.write(path, synthesise(len(text) * 11 / speed, 80.0 + 2 * pitch, number), RATE)
    return paths


def synthesise(duration_s: float, pitch_hz: float, seed: int) -> np.ndarray:
    """Something between a hum and a vowel: harmonics of a wandering pitch, in syllables, with some noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(duration_s * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * t))) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    return 0.2 * voice * np.abs(np.sin(2 * np.pi * 2 * t)) + 0.01 * rng.standard_normal(len(t))


def features(path: Path) -> np.ndarray:
    """Mean and spread of 20 MFCCs and their first two derivatives, at three pitches."""
    samples, rate = librosa.load(path, sr=RATE)
    rows = []
    for n_steps in (0, -2, 2):
        shifted = librosa.effects.pitch_shift(samples, sr=rate, n_steps=n_steps) if n_steps else samples
        mfcc = librosa.feature.mfcc(y=shifted, sr=rate, n_mfcc=20)
        stacked = np.vstack([mfcc, librosa.feature.delta(mfcc), librosa.feature.delta(mfcc, order=2)])
        rows.append(np.concatenate([stacked.mean(axis=1), stacked.std(axis=1)]))
    return np.array(rows)


def serial(paths: list[Path]) -> list[np.ndarray]:
    return [features(path) for path in paths]


def standard_pool(paths: list[Path]) -> list[np.ndarray]:
    with ProcessPoolExecutor() as pool:
        return list(pool.map(features, paths))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, AmorsizeExecutor() as ex:
        paths = make_recordings(Path(folder))
        features(paths[0])  # the loop should not be charged for what librosa compiles
        print(f"{len(paths)} recordings, {sum(soundfile.info(path).duration for path in paths):.0f} s", flush=True)
        compare(
            {
                "serial loop": lambda: serial(paths),
                "ProcessPoolExecutor": lambda: standard_pool(paths),
                "AmorsizeExecutor": lambda: list(ex.map(features, paths)),
                "... warm": lambda: list(ex.map(features, paths)),
            },
            same=np.allclose,
        )
        print(ex.last_plan)


if __name__ == "__main__":
    main()
