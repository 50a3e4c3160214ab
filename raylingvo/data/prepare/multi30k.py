"""Multi30k (task 1, English-German image captions), from its text files to Parquet files of sentence pairs.

Source: https://github.com/multi30k/dataset. Train 29,000, dev 1,014, test (2016, Flickr) 1,000 pairs. The checksums are
those that torchtext has published for the same files.
"""

from __future__ import annotations

from pathlib import Path

from raylingvo.data.prepare import _download
from raylingvo.data.prepare._pairs import Pair, Split, prepare_pairs

URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"
MD5 = {
    "train.en.gz": "0065d13af80720a55ca8153d126e6627",
    "train.de.gz": "81ff90b99829c0cd4b1b587d394afd39",
    "val.en.gz": "2b69aa9253948ac9f67e94917272dd40",
    "val.de.gz": "6e0e229eb049e3fc99a1ef02fb2d5f91",
    "test_2016_flickr.en.gz": "ff2c0fcb4893a13bd73414306bc250ae",
    "test_2016_flickr.de.gz": "efd67d314d98489b716b145475101932",
}

# The archives are those of WMT16's multimodal task, which call the test set test.
_SPLITS = (
    Split(name="train", pairs=(Pair(names=(("train.en", "train.de"),), archives=("training.tar.gz",)),)),
    Split(name="dev", pairs=(Pair(names=(("val.en", "val.de"),), archives=("validation.tar.gz",)),)),
    Split(
        name="test",
        pairs=(
            Pair(
                names=(
                    ("test_2016_flickr.en", "test_2016_flickr.de"),
                    ("test2016.en", "test2016.de"),
                    ("test.en", "test.de"),
                ),
                archives=("mmt16_task1_test.tar.gz", "mmt_task1_test2016.tar.gz"),
            ),
        ),
    ),
)


def prepare(from_path: Path | None, root: Path) -> list[str]:
    """Writes `multi30k/{train,dev,test}.parquet` under `root`, all or none; a line for each.

    Columns `en` and `de`, string: the text as it is published, not tokenized, in its order. Row groups of 4,096.

    from_path: a folder with train.en, train.de, val.*, test_2016_flickr.*, gzipped (.gz) or not, in any folder below;
    or with the archives of WMT16, training.tar.gz, validation.tar.gz and mmt16_task1_test.tar.gz; or one of these
    files. None: downloads the files and verifies their checksums. Raises RequestError, naming the file, if one is
    missing or damaged, a pair has different numbers of lines, or there is no network.
    """
    folder = root / "multi30k"
    if from_path is not None:
        return prepare_pairs(from_path, _SPLITS, folder)
    files = [_download.Published(name=name, urls=(URL + name,), checksum=f"md5:{md5}") for name, md5 in MD5.items()]
    otherwise = (
        "get data/task1/raw of https://github.com/multi30k/dataset elsewhere and run: "
        "raylingvo data prepare multi30k --from PATH"
    )
    with _download.folder(files, root / "downloads" / "multi30k", otherwise) as path:
        return prepare_pairs(path, _SPLITS, folder)
