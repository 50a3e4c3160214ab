"""Vocabularies from text: words by frequency, word pieces by merging, SentencePiece models by its trainer."""

from __future__ import annotations

import collections
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

from raylingvo.data import wpm_learning
from raylingvo.data.tokenizers.base import to_bytes, to_text
from raylingvo.errors import RequestError

Kind = Literal["sentencepiece", "wpm", "words"]
# Called with what is being done, how many are done, and how many there are, None if that is not known.
Progress = Callable[[str, int, int | None], None]

_SPECIALS = ("<unk>", "<s>", "</s>")
# As words they would be taken for specials; a vocabulary may not have these in both cases.
_RESERVED = frozenset(_SPECIALS) | {"<UNK>", "<S>", "</S>"}


def train_vocab(
    kind: Kind,
    lines: Iterable[str],
    size: int,
    out: Path,
    *,
    character_coverage: float = 1.0,
    seed: int = 0,
    progress: Progress = lambda doing, done, total: None,
) -> Path:
    """Makes a vocabulary of at most `size` ids from text and writes it to `out`, whole or not at all. Returns `out`.

    The first ids are <unk> 0, <s> 1, </s> 2, what tokenizers expect.
    words: lines `word TAB id` for VocabFileTokenizer. Words are separated by ASCII white space; the most frequent come
    first, of equals in the order of their code points.
    wpm: a line for each piece for WpmTokenizer: U+2581, which is put before each word, the characters, most frequent
    first, then pieces in the order in which they were made: each time the most frequent concatenation of two.
    sentencepiece: a `.model` for SentencePieceTokenizer: a unigram model, text normalised by `nmt_nfkc`. Lines of more
    than 65,536 bytes are left out.

    There are fewer ids than `size` if the text has no more words or pieces. character_coverage: the share of the text's
    characters that must be known (wpm, sentencepiece); 1.0 knows all, for Chinese or Japanese 0.9995 is usual. seed: of
    the sample that SentencePiece takes from more than 10 million lines.

    Raises RequestError for an unknown kind, a size that is too small for the characters, text without a word, or a
    folder that cannot be written to.
    """
    if kind not in get_args(Kind):
        raise RequestError(f"the kind of vocabulary must be one of {', '.join(get_args(Kind))} (got {kind!r})")
    if size <= len(_SPECIALS):
        raise RequestError(f"the size of a vocabulary must be > {len(_SPECIALS)}, its special ids (got {size})")
    if not 0.0 < character_coverage <= 1.0:
        raise RequestError(f"character_coverage must be in (0, 1] (got {character_coverage})")
    counted = _counted(lines, progress)
    if kind == "words":
        content = _words(counted, size)
    elif kind == "wpm":
        content = _wpm(counted, size, character_coverage, progress)
    else:
        content = _sentencepiece(counted, size, character_coverage, seed, progress)
    _write(out, content)
    return out


def _counted(lines: Iterable[str], progress: Progress) -> Iterator[str]:
    """The lines that have a word; reports each 1000th."""
    done = 0
    for done, line in enumerate(lines, 1):
        content = to_bytes(line)
        if content.strip():
            yield to_text(content)  # without lone surrogates
        if done % 1000 == 0:
            progress("reading", done, None)
    progress("reading", done, done)


def _words(lines: Iterable[str], size: int) -> bytes:
    counts = {word: n for word, n in _word_counts(lines).items() if word not in _RESERVED}
    words = sorted(counts, key=lambda word: (-counts[word], word))
    entries = [*_SPECIALS, *words[: size - len(_SPECIALS)]]
    return "".join(f"{word}\t{i}\n" for i, word in enumerate(entries)).encode()


def _wpm(lines: Iterable[str], size: int, character_coverage: float, progress: Progress) -> bytes:
    pieces = wpm_learning.learn(
        _word_counts(lines),
        size - len(_SPECIALS),
        character_coverage=character_coverage,
        reserved=_RESERVED,
        progress=lambda done, total: progress("merging", done, total),
    )
    return "".join(f"{piece}\n" for piece in (*_SPECIALS, *pieces)).encode()


def _word_counts(lines: Iterable[str]) -> dict[str, int]:
    """How often each word occurs. Raises RequestError if there is none."""
    counts: collections.Counter[bytes] = collections.Counter()
    for line in lines:
        # Of bytes, split() knows ASCII white space only, as the tokenizers do.
        counts.update(line.encode().split())
    if not counts:
        raise _no_words()
    return {word.decode(): n for word, n in counts.items()}


def _sentencepiece(lines: Iterator[str], size: int, character_coverage: float, seed: int, progress: Progress) -> bytes:
    from sentencepiece import SentencePieceTrainer, set_random_generator_seed

    # The library's own message for text without a line does not say what is wrong.
    first = next(lines, None)
    if first is None:
        raise _no_words()

    failures: list[BaseException] = []

    def sentences() -> Iterator[str]:
        try:
            yield first
            yield from lines
            progress("training", 0, None)
        # The library makes a RuntimeError of whatever is raised in here, an interrupt (Ctrl-C) too.
        except BaseException as e:
            failures.append(e)
            raise

    set_random_generator_seed(seed)
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=sentences(),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,  # fewer pieces than asked for are no error
            character_coverage=character_coverage,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            input_sentence_size=10_000_000,  # 5 GB; more text changes little
            shuffle_input_sentence=True,
            max_sentence_length=1 << 16,  # bytes; the default drops what is longer than 4192
            minloglevel=2,
        )
    except RuntimeError as e:
        if failures:
            raise failures[0] from None
        raise RequestError(f"cannot train a vocabulary of size {size}: {str(e).partition(chr(10))[0]}") from e
    progress("training", 1, 1)
    return model.getvalue()


def _no_words() -> RequestError:
    return RequestError("there is no word in the text to make a vocabulary from; name other files")


def _write(out: Path, content: bytes) -> None:
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as e:
        raise RequestError(f"cannot write {out}: {e.strerror}") from e
