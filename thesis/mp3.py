"""MP3 files: decoded until nothing comes, whatever their headers say of their length.

Only a Xing or Info tag, which encoders put into the first frame, tells how long an MP3 is. Where it
is missing, as in streams and many sample libraries, libsndfile guesses from the first frame's bit
rate, and reads no further than it has guessed. So MP3s are decoded by miniaudio, which is imported
where it is used: that takes a tenth of a second.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_PADDING = 4 * 1152
"""Samples that a tag may have taken off at both ends: what encoders add, in whole frames."""

_TAGS = (b"Xing", b"Info")
_TAG_PLACES = (13, 15, 21, 23, 36, 38)
"""Where in a frame a tag may be: after the header, a checksum or none, and the side information."""

_FIRST_FRAME_WITHIN = 2**16


class Mp3Error(ValueError):
    """What looked like an MP3 cannot be decoded."""


@dataclass(frozen=True)
class Mp3:
    """An MP3 file.

    Attributes:
      sample_rate: In Hz.
      n_channels: 1 or 2.
      n_promised: Samples of a channel that there are by the file's tag, or by its frames.
      n_samples: Samples of a channel that its frames hold, padding included.
      data: The file.
    """

    sample_rate: int
    n_channels: int
    n_promised: int
    n_samples: int
    data: bytes

    @property
    def is_cut_short(self) -> bool:
        """Whether the file's tag promises more than its frames hold."""
        return self.n_promised > self.n_samples

    def blocks(self, n_samples: int) -> Iterator[NDArray[np.float32]]:
        """Yields the samples in blocks of at most `n_samples`, shape [n, n_channels].

        Raises:
          Mp3Error: They cannot be decoded.
        """
        import miniaudio

        # A tag that promises less is that of the first of several files in one.
        has_more = self.n_samples > self.n_promised + _MOST_PADDING
        stream = miniaudio.stream_memory(
            _without_tag(self.data) if has_more else self.data,
            output_format=miniaudio.SampleFormat.FLOAT32,
            nchannels=self.n_channels,
            sample_rate=self.sample_rate,
            frames_to_read=n_samples,
        )
        try:
            for block in stream:
                yield np.asarray(block, np.float32).reshape(-1, self.n_channels)
        except miniaudio.MiniaudioError as error:
            raise Mp3Error(str(error)) from error


def read_mp3(data: bytes) -> Mp3 | None:
    """Returns what a file's bytes hold, if they are those of an MP3."""
    import miniaudio

    try:
        promised = miniaudio.mp3_get_info(data)
        held = miniaudio.mp3_get_info(_without_tag(data))
    except miniaudio.MiniaudioError:
        return None
    return Mp3(promised.sample_rate, promised.nchannels, promised.num_frames, held.num_frames, data)


def _without_tag(data: bytes) -> bytes:
    """Returns a file whose first frame does not say how long it is."""
    start = _first_frame(data)
    for place in _TAG_PLACES:
        at = start + place
        if data[at : at + 4] in _TAGS:
            return b"".join((data[:at], bytes(4), data[at + 4 :]))
    return data


def _first_frame(data: bytes) -> int:
    """Returns where the first MPEG frame begins: after ID3v2 tags, if there are any."""
    at = 0
    while data[at : at + 3] == b"ID3" and at + 10 <= len(data):
        # Seven bits a byte, so that no size looks like the beginning of a frame (ID3v2.4, 6.2).
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size
    while (at := data.find(b"\xff", at, at + _FIRST_FRAME_WITHIN)) >= 0:
        if data[at + 1 : at + 2] >= b"\xe0":
            return at
        at += 1
    return len(data)
