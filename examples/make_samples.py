"""Make the recordings for the demo and the tests: `.venv/bin/python examples/make_samples.py`.

A synthesiser speaks each sentence separately. The silence around it is trimmed, and the sentence is placed at a known
time, so each `NAME.speech.csv` lists exactly where speech is. Needs espeak-ng on PATH (1.51 made those in the
repository). The same espeak-ng and the same locked packages give the same bytes.
"""

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import cast

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

SAMPLES = Path(__file__).parents[1] / "stt_async" / "local" / "samples"

Signal = npt.NDArray[np.float32]

# The crow and the pitcher, after Aesop, retold for this project.
TALE = {
    "ne": (
        "एउटा तिर्खाएको काग दिनभरि सुक्खा खेतमाथि उड्यो।",
        "साँझ उसले इनारको छेउमा एउटा अग्लो घडा भेट्यो।",
        "घडाको पिँधमा पानी थियो, तर उसको चुच्चो त्यहाँ पुगेन।",
        "कागले एकछिन सोच्यो र वरिपरि हेर्यो।",
        "उसले एउटा सानो ढुङ्गा टिपेर घडामा खसाल्यो।",
        "एकपछि अर्को गर्दै उसले धेरै ढुङ्गा खसाल्यो, र पानी बिस्तारै माथि आयो।",
        "अन्त्यमा उसले पानी पियो र रात पर्नुअघि घर फर्कियो।",
    ),
    "hi": (
        "एक प्यासा कौआ दिन भर सूखे खेतों के ऊपर उड़ता रहा।",
        "शाम को उसे कुएँ के पास एक ऊँचा घड़ा मिला।",
        "घड़े की तली में पानी था, पर उसकी चोंच वहाँ तक नहीं पहुँची।",
        "कौए ने थोड़ी देर सोचा और इधर उधर देखा।",
        "उसने एक छोटा पत्थर उठाया और घड़े में डाल दिया।",
        "एक के बाद एक उसने बहुत से पत्थर डाले, और पानी धीरे धीरे ऊपर आया।",
        "अंत में उसने पानी पिया और रात से पहले घर लौट गया।",
    ),
    "en": (
        "A thirsty crow flew over dry fields for a whole day.",
        "In the evening it found a tall pitcher beside a well.",
        "There was water at the bottom, but its beak could not reach it.",
        "The crow thought for a while and looked around.",
        "It took a small stone and dropped it into the pitcher.",
        "One after another it dropped many stones, and the water slowly rose.",
        "At last it drank, and flew home before the night.",
    ),
    "fr": (
        "Un corbeau assoiffé vola tout le jour au-dessus des champs secs.",
        "Le soir, il trouva une grande cruche près d'un puits.",
        "Il y avait de l'eau au fond, mais son bec ne l'atteignait pas.",
        "Le corbeau réfléchit un moment et regarda autour de lui.",
        "Il prit un petit caillou et le laissa tomber dans la cruche.",
        "Il en jeta beaucoup, l'un après l'autre, et l'eau monta lentement.",
        "Enfin il but, et rentra chez lui avant la nuit.",
    ),
}
GREETING = ("नमस्ते।", "तपाईंलाई कस्तो छ?", "आज बिहान हिमाल सफा देखियो।")

NOT_A_RECORDING = """<!DOCTYPE html>
<html><head><title>404 Not Found</title></head>
<body><h1>Not Found</h1><p>The recording that you asked for has moved.</p></body></html>
"""


@dataclass(frozen=True, slots=True)
class Utterance:
    """A sentence, its voice, and the silence before it."""

    voice: str
    text: str
    pause_s: float
    channel: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How a recording is encoded; its file name decides the container."""

    codec: str
    rate_hz: int
    bit_rate: int | None = None
    channels: int = 1


def monologue(voices: Sequence[str], pauses_s: Sequence[float], *, sentences: int = 7) -> list[Utterance]:
    """Return the tale by one voice after the other, with these pauses in turn."""
    pauses = cycle(pauses_s)
    return [Utterance(voice, text, next(pauses)) for voice in voices for text in TALE[voice][:sentences]]


def dialogue(left: str, right: str) -> Iterator[Utterance]:
    """Yield the tale by two voices in turn, one on each channel."""
    for number, texts in enumerate(zip(TALE[left], TALE[right], strict=True)):
        channel = number % 2
        yield Utterance((left, right)[channel], texts[channel], 1.1, channel)


def speak(utterance: Utterance, rate_hz: int) -> Signal:
    """Return the sentence from the first to the last audible sample (1 % of its peak)."""
    espeak = shutil.which("espeak-ng")
    if espeak is None:
        sys.exit("espeak-ng is not on PATH: install it (Debian, Ubuntu: apt install espeak-ng)")
    wav = subprocess.run(
        [espeak, "-v", utterance.voice, "-s", "140", "--stdout"],
        input=utterance.text.encode(),
        capture_output=True,
        check=True,
    ).stdout
    signal, spoken_hz = soundfile.read(io.BytesIO(wav), dtype="float32")
    signal = soxr.resample(signal, spoken_hz, rate_hz)
    loud = np.flatnonzero(np.abs(signal) > 0.01 * np.abs(signal).max())
    trimmed: Signal = 0.7 * signal[loud[0] : loud[-1] + 1] / np.abs(signal).max()
    return trimmed


def place(
    utterances: Sequence[Utterance], encoding: Encoding, tail_s: float = 1.5
) -> tuple[Signal, list[tuple[float, float]]]:
    """Return the recording, (channels, samples), and the starts and ends of its speech, in seconds."""
    rate_hz = encoding.rate_hz
    spoken = [speak(each, rate_hz) for each in utterances]
    starts, at = [], 0
    for utterance, signal in zip(utterances, spoken, strict=True):
        at += round(utterance.pause_s * rate_hz)
        starts.append(at)
        at += len(signal)
    recording = np.zeros((encoding.channels, at + round(tail_s * rate_hz)), dtype=np.float32)
    speech: list[tuple[float, float]] = []
    for utterance, signal, start in zip(utterances, spoken, starts, strict=True):
        recording[utterance.channel, start : start + len(signal)] = signal
        if utterance.pause_s == 0 and speech:  # spoken without a pause: one run of speech
            speech[-1] = (speech[-1][0], (start + len(signal)) / rate_hz)
        else:
            speech.append((start / rate_hz, (start + len(signal)) / rate_hz))
    return recording, speech


def wind(samples: int, level: float) -> Signal:
    """Return noise that falls by 3 dB per octave, the same every time."""
    spectrum = np.fft.rfft(np.random.default_rng(2).standard_normal(samples))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, samples)
    scaled: Signal = (level * noise / noise.std()).astype(np.float32)
    return scaled


def tones(rate_hz: int) -> Signal:
    """Return 20 s without speech: a scale of plain notes, wind, and silence."""
    time_s = np.arange(rate_hz) / rate_hz
    scale = [
        np.sin(2 * np.pi * 220 * 2 ** (step / 12) * time_s) * np.exp(-3 * time_s) for step in (0, 2, 4, 5, 7, 9, 11, 12)
    ]
    melody = 0.4 * np.concatenate(scale).astype(np.float32)
    return np.concatenate([melody, wind(8 * rate_hz, 0.05), np.zeros(4 * rate_hz, dtype=np.float32)])[np.newaxis]


def write(path: Path, signal: Signal, encoding: Encoding) -> None:
    """Encode `signal`, (channels, samples)."""
    layout = "stereo" if encoding.channels == 2 else "mono"  # noqa: PLR2004 - stereo means 2
    # bitexact: no dates, versions or random serial numbers in the file.
    with av.open(path, "w", options={"fflags": "+bitexact"}) as container:
        stream = cast("av.AudioStream", container.add_stream(encoding.codec, rate=encoding.rate_hz, layout=layout))
        stream.codec_context.options = {"flags": "+bitexact"}
        if encoding.bit_rate:
            stream.bit_rate = encoding.bit_rate
        pcm = np.clip(np.round(signal * 32767), -32768, 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm.T.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = encoding.rate_hz
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def save(name: str, signal: Signal, speech: Sequence[tuple[float, float]], encoding: Encoding) -> None:
    """Write a recording, and a file beside it that lists its speech."""
    path = SAMPLES / name
    write(path, signal, encoding)
    with path.with_suffix(".speech.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("start_s", "end_s"))
        rows.writerows((f"{start:.3f}", f"{end:.3f}") for start, end in speech)
    length_s = signal.shape[1] / encoding.rate_hz
    print(f"{path.stat().st_size:>8,} bytes  {length_s:6.1f} s  {len(speech):>2} runs of speech  {name}")


def main() -> None:
    """Make all recordings."""
    SAMPLES.mkdir(exist_ok=True)

    mp3 = Encoding(codec="libmp3lame", rate_hz=22_050, bit_rate=32_000)
    save("reading.mp3", *place(monologue(("ne", "hi", "en"), (1.0, 1.6, 2.4)), mp3), mp3)

    breathless = Encoding(codec="libmp3lame", rate_hz=16_000, bit_rate=24_000)
    save("no-pause.mp3", *place(monologue(("en", "fr"), (0.0,)), breathless), breathless)

    stereo = Encoding(codec="aac", rate_hz=44_100, bit_rate=48_000, channels=2)
    save("two-voices.m4a", *place(list(dialogue("hi", "fr")), stereo), stereo)

    telephone = Encoding(codec="pcm_mulaw", rate_hz=8_000)
    save("telephone.wav", *place(monologue(("hi",), (0.9, 1.3), sentences=4), telephone), telephone)

    windy = Encoding(codec="libopus", rate_hz=48_000, bit_rate=32_000)
    signal, speech = place(monologue(("ne",), (1.5,), sentences=5), windy)
    save("wind.ogg", signal + wind(signal.shape[1], 0.015), speech, windy)

    save("no-speech.mp3", tones(mp3.rate_hz), (), mp3)

    flac = Encoding(codec="flac", rate_hz=16_000)
    greeting = [Utterance("ne", text, 1.0) for text in GREETING]
    save("བཀྲ་ཤིས་ བདེ་ལེགས།.flac", *place(greeting, flac), flac)

    (SAMPLES / "not-a-recording.mp3").write_text(NOT_A_RECORDING)


if __name__ == "__main__":
    main()
