"""WMT14 English-German, from its archives or what was in them to Parquet files of sentence pairs.

Source: https://www.statmt.org/wmt14/translation-task.html, as Lingvo's tasks/mt/tools/wmt14_get_data.sh uses it: train
is Common Crawl, Europarl v7 and News Commentary v9, dev is newstest2013 (3,000 pairs), test the filtered newstest2014
(2,737 pairs). It differs in that the text stays as it is published: a model brings its own tokenizer.

SHA-256 of the training archives: those of TensorFlow Datasets. MD5 of the others: those of sacreBLEU. newstest2013 is
downloaded in WMT17's archive of development sets, since for WMT14's no checksum is known to two sources.
"""

from __future__ import annotations

import collections
from pathlib import Path

from raylingvo.data.prepare import _download
from raylingvo.data.prepare._pairs import Pair, Rows, Split, prepare_pairs

# URL without https:// -> checksum.
CHECKSUMS = {
    "www.statmt.org/wmt13/training-parallel-europarl-v7.tgz": (
        "sha256:0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7"
    ),
    "www.statmt.org/wmt13/training-parallel-commoncrawl.tgz": (
        "sha256:c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5"
    ),
    "www.statmt.org/wmt14/training-parallel-nc-v9.tgz": (
        "sha256:cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485"
    ),
    "data.statmt.org/wmt17/translation-task/dev.tgz": "md5:9b1aa63c1cf49dccdd20b962fe313989",
    "www.statmt.org/wmt14/test-filtered.tgz": "md5:84c597844c1542e29c2aff23aaee4310",
}
# The servers have not always had https; the checksum holds for both.
PROTOCOLS = ("https://", "http://")

_MAX_TOKENS = 100
_MAX_RATIO = 9
_MAX_CHARACTERS = 1000

_TRAIN = tuple(
    Pair(names=((f"{corpus}.de-en.en", f"{corpus}.de-en.de"),), archives=archives)
    for corpus, archives in (
        ("commoncrawl", ("training-parallel-commoncrawl.tgz",)),
        ("europarl-v7", ("training-parallel-europarl-v7.tgz", "de-en.tgz")),
        ("news-commentary-v9", ("training-parallel-nc-v9.tgz",)),
    )
)
_DEV = Pair(
    names=(("newstest2013.en", "newstest2013.de"), ("newstest2013-src.en.sgm", "newstest2013-ref.de.sgm")),
    archives=("dev.tgz",),
)
_SGM_2014 = ("newstest2014-deen-src.en.sgm", "newstest2014-deen-ref.de.sgm")
_TEST = Pair(
    names=(
        # As test-filtered.tgz and test-full.tgz unpack; who has both gets the filtered one.
        (f"test/{_SGM_2014[0]}", f"test/{_SGM_2014[1]}"),
        (f"test-full/{_SGM_2014[0]}", f"test-full/{_SGM_2014[1]}"),
        _SGM_2014,
        ("newstest2014.en", "newstest2014.de"),
    ),
    archives=("test-filtered.tgz", "test-full.tgz"),
)


def prepare(from_path: Path | None, root: Path) -> list[str]:
    """Writes `wmt14_ende/{train,dev,test}.parquet` under `root`, all or none; a line for each, with what was dropped.

    Columns `en` and `de`, string, not tokenized, in the order of the files: Common Crawl, Europarl, News Commentary.
    Row groups of 4,096. Dev and test keep all pairs. Train keeps what Moses' clean-corpus-n.perl does for 1 to 100
    tokens: no pair with an empty side, over 100 tokens on a side, over 9 times the tokens of the other side, or a token
    of over 1,000 characters; runs of white space become one space. It differs in that tokens are those between white
    space, so that it keeps a little more than Lingvo's 4,492,447 pairs, and in that it does not delete `|`.

    from_path: a folder with the archives (training-parallel-{commoncrawl,europarl-v7,nc-v9}.tgz, dev.tgz,
    test-filtered.tgz or test-full.tgz) or what was in them, newstest2013 and newstest2014 as .sgm or plain text; or one
    of the archives, beside the others. None: downloads 1.7 GB and verifies the checksums. Members of archives go
    through unnamed temporary files under `root`. Raises RequestError, naming the file, if one is missing or damaged, a
    pair has different numbers of lines, or there is no network.
    """
    if from_path is not None:
        return prepare_pairs(from_path, _splits(), root / "wmt14_ende")
    files = [
        _download.Published(
            name=url.rpartition("/")[2], urls=tuple(protocol + url for protocol in PROTOCOLS), checksum=checksum
        )
        for url, checksum in CHECKSUMS.items()
    ]
    otherwise = (
        "get the archives of https://www.statmt.org/wmt14/translation-task.html elsewhere and run: "
        "raylingvo data prepare wmt14_ende --from PATH"
    )
    with _download.folder(files, root / "downloads" / "wmt14_ende", otherwise) as path:
        return prepare_pairs(path, _splits(), root / "wmt14_ende")


def _splits() -> tuple[Split, ...]:
    cleaner = _Cleaner()
    return (
        Split(name="train", pairs=_TRAIN, keep=cleaner.keep, notes=cleaner.notes),
        Split(name="dev", pairs=(_DEV,)),
        Split(name="test", pairs=(_TEST,)),
    )


class _Cleaner:
    """Keeps what clean-corpus-n.perl keeps, and counts why the others go."""

    def __init__(self) -> None:
        self._dropped: collections.Counter[str] = collections.Counter()

    def keep(self, rows: Rows) -> Rows:
        for en, de in rows:
            en_tokens, de_tokens = en.split(), de.split()
            if fault := _fault(en_tokens, de_tokens):
                self._dropped[fault] += 1
            else:
                yield " ".join(en_tokens), " ".join(de_tokens)

    def notes(self) -> str:
        if not self._dropped:
            return "; none dropped"
        reasons = ", ".join(f"{count} {fault}" for fault, count in self._dropped.most_common())
        return f"; {self._dropped.total()} dropped: {reasons}"


def _fault(en: list[str], de: list[str]) -> str:
    """Why clean-corpus-n.perl would drop a pair; empty if it would not."""
    shorter, longer = sorted((len(en), len(de)))
    if not shorter:
        return "with an empty side"
    if longer > _MAX_TOKENS:
        return f"of over {_MAX_TOKENS} tokens"
    if longer > _MAX_RATIO * shorter:
        return f"of lengths over {_MAX_RATIO}:1"
    if max(map(len, en + de)) > _MAX_CHARACTERS:
        return f"with a token of over {_MAX_CHARACTERS} characters"
    return ""
