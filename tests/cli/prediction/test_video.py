"""Frames of videos, and the video that is written."""

import cv2
import numpy as np
import pytest

from tood_jax.cli.prediction.video import Video, VideoDrawing, find_video
from tood_jax.config import ConfigError
from tood_jax.data.errors import DataError


def write_clip(path, grey_values, size=(64, 48)):
    """A clip of plain frames; `size` is (width, height)."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, size)
    assert writer.isOpened()
    for grey in grey_values:
        writer.write(np.full((size[1], size[0], 3), grey, np.uint8))
    writer.release()
    return path


def test_frames_come_in_order_with_their_numbers(tmp_path):
    video = Video(str(write_clip(tmp_path / "a.avi", [10, 90, 170])))
    frames = list(video.frames())
    assert [str(frame) for frame in frames] == [f"{tmp_path}/a.avi/00000{number}" for number in range(3)]
    assert [round(frame.pixels.mean() / 10) for frame in frames] == [1, 9, 17]
    assert frames[0].pixels.shape == (48, 64, 3)
    assert (video.count, video.rate, video.read, video.drawing, video.messages()) == (3, 10, 3, "a.mp4", [])


def test_a_clip_that_was_cut_is_named(tmp_path):
    path = write_clip(tmp_path / "a.avi", range(0, 250, 10))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    video = Video(str(path))
    assert 1 < len(list(video.frames())) < 25
    assert "a.avi announces 25 frames, but" in video.messages()[0]


def test_a_drawing_has_each_frame_in_the_size_of_the_first(tmp_path):
    drawing = VideoDrawing(tmp_path / "b.mp4", 10)
    for side in (65, 65, 90):
        drawing.add(np.full((side, side + 10, 3), (200, 50, 50), np.uint8))
    drawing.close()
    video = Video(str(tmp_path / "b.mp4"))
    frames = [frame.pixels for frame in video.frames()]
    assert [frame.shape for frame in frames] == [(64, 74, 3)] * 3
    np.testing.assert_allclose(frames[2].mean(axis=(0, 1)), (200, 50, 50), atol=8)  # RGB, not BGR
    VideoDrawing(tmp_path / "none.mp4", 10).close()
    assert not (tmp_path / "none.mp4").exists()


def test_which_words_are_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in ("clip.mp4", "a/CLIP.MOV", "0", "rtsp://host/x"):
        assert find_video([word]) == word
    (tmp_path / "0").mkdir()
    for words in (["0"], ["a.jpg", "b.png"], [], ["clips"]):
        assert find_video(words) is None
    with pytest.raises(ConfigError, match="one video alone"):
        find_video(["a.jpg", "clip.mp4"])


def test_an_error_does_not_show_the_password_of_a_stream():
    with pytest.raises(DataError, match=r"rtsp://127\.0\.0\.1:1/door can't be opened") as error:
        Video("rtsp://me:secret@127.0.0.1:1/door")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no video" * 100])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.mp4 can't be opened as a video"):
        Video(str(tmp_path / "a.mp4"))
    with pytest.raises(DataError, match=r"no\.mp4 can't be read \(No such file"):
        Video(str(tmp_path / "no.mp4"))
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(DataError, match="is a folder, not a video"):
        Video(str(tmp_path / "folder.mp4"))
