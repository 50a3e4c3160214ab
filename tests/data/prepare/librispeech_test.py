"""LibriSpeech from archives in any order and from folders gives the same rows; nothing is lost silently."""

import io
import random
import tarfile
import wave

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.prepare import librispeech, prepare
from raylingvo.errors import RequestError


def flac(num_samples, sample_rate=16000, channels=1, bits=16):
    """The head of a FLAC file, and something in place of its frames."""
    packed = sample_rate << 44 | channels - 1 << 41 | bits - 1 << 36 | num_samples
    info = bytes(10) + packed.to_bytes(8, "big") + bytes(16)
    return b"fLaC\x80\0\0\x22" + info + b"frames of " + str(num_samples).encode()


# part -> speaker, chapter -> utterances
CORPUS = {
    "dev-clean": {(84, 121123): 3, (84, 9): 1, (103, 1240): 70},
    "train-clean-100": {(7, 7): 2},
}


def corpus(parts=CORPUS, top="LibriSpeech/"):
    files = {f"{top}README.TXT": b"\xff"}
    for part, chapters in parts.items():
        for (speaker, chapter), count in chapters.items():
            stem = f"{speaker}-{chapter}"
            folder = f"{top}{part}/{speaker}/{chapter}/"
            lines = "".join(f"{stem}-{i:04} HE SAID {i}\n" for i in range(count))
            files[f"{folder}{stem}.trans.txt"] = lines.encode()
            for i in range(count):
                files[f"{folder}{stem}-{i:04}.flac"] = flac(1000 * chapter + i)
    return files


def rows(part):
    return [
        (f"{s}-{c}-{i:04}", s, c, f"he said {i}", flac(1000 * c + i), 16000, 1000 * c + i)
        for (s, c), count in sorted(CORPUS[part].items())
        for i in range(count)
    ]


@pytest.fixture
def assert_prepared(root, read_rows):
    def check(parts=tuple(CORPUS), lines=None):
        folder = root / "librispeech"
        assert sorted(file.name for file in folder.iterdir()) == [f"{part}.parquet" for part in sorted(parts)]
        for part in parts:
            assert read_rows(folder / f"{part}.parquet") == rows(part)
        if lines is not None:
            for part, line in zip(sorted(parts), lines, strict=True):
                assert line.startswith(f"{folder}/{part}.parquet: {len(rows(part))} utterances, ")

    return check


@pytest.fixture
def archives(tmp_path, write_tar):
    for part in CORPUS:
        write_tar(tmp_path / "archives" / f"{part}.tar.gz", corpus({part: CORPUS[part]}))
    return tmp_path / "archives"


@pytest.mark.parametrize("at", ["", "LibriSpeech", "LibriSpeech/dev-clean"])
def test_from_folders(tmp_path, write_files, assert_prepared, monkeypatch, at):
    folder = write_files(tmp_path / "down", corpus())
    parts = ["dev-clean"] if at.endswith("clean") else [*CORPUS]
    assert_prepared(parts, prepare("librispeech", folder / at))
    monkeypatch.chdir(folder / at)
    assert_prepared(parts, prepare("librispeech", type(folder)(".")))


def test_from_archives(archives, assert_prepared, write_tar):
    write_tar(archives / "intro-disclaimers.tar.gz", {"other": b""})
    assert_prepared(lines=prepare("librispeech", archives))


def test_from_one_archive(archives, assert_prepared):
    assert_prepared(["dev-clean"], prepare("librispeech", archives / "dev-clean.tar.gz"))


def test_an_unpacked_part_goes_before_its_archive(archives, write_files, assert_prepared):
    write_files(archives, corpus({"dev-clean": CORPUS["dev-clean"]}))
    (archives / "dev-clean.tar.gz").write_bytes(b"damaged")
    assert_prepared(lines=prepare("librispeech", archives))


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_an_archive_does_not_matter(tmp_path, write_tar, assert_prepared, seed):
    members = list(corpus().items())
    random.Random(seed).shuffle(members)
    archive = write_tar(tmp_path / "all.tar.gz", {"LibriSpeech/dev-clean/84/9/._84-9-0000.flac": b"", **dict(members)})
    assert_prepared(lines=prepare("librispeech", archive))


def test_the_schema_and_the_row_groups(archives, root):
    prepare("librispeech", archives / "dev-clean.tar.gz")
    with pq.ParquetFile(root / "librispeech" / "dev-clean.parquet") as file:
        assert file.schema_arrow == pa.schema(
            [
                ("id", pa.string()),
                ("speaker", pa.int32()),
                ("chapter", pa.int32()),
                ("text", pa.string()),
                ("audio", pa.binary()),
                ("sample_rate", pa.int32()),
                ("num_samples", pa.int64()),
            ]
        )
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert sizes == [1, 3, 64, 6]
        assert file.metadata.row_group(0).column(4).compression == "UNCOMPRESSED"


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 655_350), st.integers(1, (1 << 36) - 1), st.integers(4, 32))
def test_the_flac_header(sample_rate, num_samples, bits):
    content = flac(num_samples, sample_rate, bits=bits)
    assert librispeech._stream_info(content, "x") == (sample_rate, num_samples)


@pytest.mark.parametrize("content", [b"", b"RIFF" + bytes(40), flac(5)[:25], b"fLaC\x84" + flac(5)[5:]])
def test_what_is_no_flac_file_is_refused(content):
    with pytest.raises(RequestError, match="x is not a FLAC file: it starts with "):
        librispeech._stream_info(content, "x")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (flac(5, channels=2), "2 channels, 5 samples at 16000 Hz"),
        (flac(0), "1 channels, 0 samples at 16000 Hz"),
        (flac(5, 0), "1 channels, 5 samples at 0 Hz"),
    ],
)
def test_audio_of_another_kind_is_refused(content, got):
    with pytest.raises(RequestError, match=rf"x must be mono audio \(got {got}\)"):
        librispeech._stream_info(content, "x")


FLAC = "LibriSpeech/dev-clean/84/9/84-9-0000.flac"
TRANSCRIPT = "LibriSpeech/dev-clean/84/9/84-9.trans.txt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FLAC: None}, "{}: no FLAC file for 84-9-0000 of dev-clean"),
        ({TRANSCRIPT: b"84-9-0001 X\n"}, "{}: no FLAC file for 84-9-0001 of dev-clean"),
        ({TRANSCRIPT: b""}, "{}: no transcript for 84-9-0000 of dev-clean"),
        ({TRANSCRIPT: b"84-9-0000\n"}, "{}: line 1 must be the id of a new utterance, a space and its text"),
        ({TRANSCRIPT: b"\n84-9-0000 X\n84-9-0000 Y\n"}, "{}: line 3 must be the id of a new utterance, a space"),
        ({TRANSCRIPT: b"what this is\n"}, "{}: line 1 must be the id of a new utterance, a space and its text"),
        ({FLAC: b"ID3"}, "{} is not a FLAC file: it starts with 49 44 33"),
        ({FLAC: bytes((16 << 20) + 1)}, "{} has over 16777216 bytes"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, root, write_files, write_tar, refusal, change, message):
    files = {name: content for name, content in (corpus() | change).items() if content is not None}
    for from_path in (write_files(tmp_path / "down", files), write_tar(tmp_path / "all.tar.gz", files)):
        refused = refusal("librispeech", from_path)
        assert message.format("") in refused
        assert str(from_path) in refused
        assert not list(root.rglob("*.tmp"))
        assert not (root / "librispeech" / "dev-clean.parquet").exists()


def test_a_missing_transcript_is_refused(tmp_path, write_files, write_tar, refusal):
    files = corpus()
    del files[TRANSCRIPT]
    folder = write_files(tmp_path / "down", files)
    chapter = folder / "LibriSpeech/dev-clean/84/9"
    assert refusal("librispeech", folder) == f"{chapter} has FLAC files, but no .trans.txt"
    archive = write_tar(tmp_path / "all.tgz", files)
    assert refusal("librispeech", archive) == f"{archive}: no transcript for 84-9-0000 of dev-clean"


def test_files_in_other_folders_are_refused(tmp_path, write_files, write_tar, refusal):
    for name in ("84/9/84-9.trans.txt", "LibriSpeech/Dev/84/9/84-9.trans.txt", "dev-clean/84/8/84-9.trans.txt"):
        files = {name: b"84-9-0000 X\n"}
        for path in (write_files(tmp_path / name / "down", files), write_tar(tmp_path / name / "a.tgz", files)):
            assert refusal("librispeech", path).endswith(
                f"{name} is not in a folder <part>/84/9, with <part> as dev-clean"
            )


def test_a_chapter_that_is_there_twice_is_refused(tmp_path, write_files, refusal):
    folder = write_files(tmp_path / "down", corpus() | corpus(top="copy/"))
    assert ".trans.txt? Name a folder that has one" in refusal("librispeech", folder)
    archive = tmp_path / "all.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in [*corpus().items()] * 2:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert refusal("librispeech", archive) == f"{archive} has dev-clean/84/121123 twice"


def test_chapters_that_wait_are_bounded(archives, monkeypatch, refusal):
    monkeypatch.setattr(librispeech, "_MAX_WAITING_BYTES", 1000)
    archive = archives / "dev-clean.tar.gz"
    assert refusal("librispeech", archive) == (
        f"{archive} has the files of a chapter far apart: unpack it, and name the folder"
    )


def test_what_has_no_part_is_refused(tmp_path, write_tar, refusal):
    folder = tmp_path / "down"
    archive = write_tar(folder / "musan.tar.gz", {"a": b""})
    assert refusal("librispeech", archive) == f"{archive} has no <part>/<speaker>/<chapter>/*.flac with a .trans.txt"
    message = f"--from {folder}: no <part>.tar.gz, and no <part>/<speaker>/<chapter>/*.trans.txt"
    assert refusal("librispeech", folder) == message
    (folder / "a.zip").touch()
    message = f"--from {folder}/a.zip must be a .tar.gz of LibriSpeech, or a folder"
    assert refusal("librispeech", folder / "a.zip") == message


def test_a_cut_archive_leaves_nothing(archives, root, refusal):
    archive = archives / "dev-clean.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-20])
    assert refusal("librispeech", archive).startswith(f"{archive}")
    assert not list(root.rglob("*.*"))


@pytest.fixture
def mirror(archives, monkeypatch, digest):
    monkeypatch.setattr(librispeech, "MIRRORS", ((archives / "down").as_uri() + "/", archives.as_uri() + "/"))
    monkeypatch.setattr(librispeech, "SHA256", {part: digest("sha256", archives / f"{part}.tar.gz") for part in CORPUS})
    return archives


def test_download_goes_on_where_it_ended(mirror, root, assert_prepared, refusal, capsys):
    second = mirror / "train-clean-100.tar.gz"
    content = second.read_bytes()
    second.unlink()
    message = refusal("librispeech", None)
    assert message.startswith("cannot download train-clean-100.tar.gz (")
    assert message.endswith("elsewhere and run: raylingvo data prepare librispeech --from PATH")
    assert_prepared(["dev-clean"])
    second.write_bytes(content)
    (mirror / "dev-clean.tar.gz").unlink()  # it need not be there again
    first, _ = prepare("librispeech")
    assert first == f"{root}/librispeech/dev-clean.parquet: as downloaded before"
    assert_prepared()
    assert not (root / "downloads").exists()
    assert "downloading train-clean-100.tar.gz\n" in capsys.readouterr().err


@pytest.mark.parametrize("former", ["other", "damaged"])
def test_a_file_of_another_origin_is_replaced(mirror, tmp_path, root, write_files, assert_prepared, former):
    if former == "other":
        prepare("librispeech", write_files(tmp_path / "down", corpus({"dev-clean": {(1, 1): 1}})))
    else:
        write_files(root, {"librispeech/dev-clean.parquet": b"damaged"})
    prepare("librispeech")
    assert_prepared()


@pytest.mark.data
def test_a_real_flac_file(test_data):
    content = (test_data / "asr" / "gan_or_vae.flac").read_bytes()
    with wave.open(str(test_data / "asr" / "gan_or_vae.wav")) as wav:
        expected = wav.getframerate(), wav.getnframes()
    assert librispeech._stream_info(content, "x") == expected
