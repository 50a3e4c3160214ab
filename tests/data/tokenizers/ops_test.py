"""Every recorded output of Lingvo's tokenizer ops, and the shapes of the functions on lists."""

import numpy as np
import pytest

from raylingvo.data import tokenizers
from raylingvo.errors import RequestError

# The names that the recordings have for the functions' keywords.
KEYWORDS = (
    "append_eos", "maxlen", "pad_to_maxlen", "load_token_ids_from_vocab", "delimiter", "sos_id", "eos_id",
    "ngram_separator",
)  # fmt: skip
FILES = {
    "str_to_vocab_tokens": "vocab_filepath",
    "bpe_words_to_ids": "tokenization_filepath",
    "ngram_id_to_token": "ngram_vocab_filepath",
    "bpe_ids_to_words": "vocab_filepath",
    "ml_perf_subword_id_to_string": "vocab_filepath",
}
OUTPUTS = ("token_ids", "target_ids", "paddings")


def text(recorded):
    return bytes.fromhex(recorded[4:]) if recorded.startswith("hex:") else recorded


def check(case, arrays):
    op, given = case["op"], [text(string) for string in case.get("in_strings", [])]
    keywords = {name: case[name] for name in KEYWORDS if name in case}
    if op in FILES:
        keywords[FILES[op]] = case["vocab"]
    if op == "wpm":
        tokenizer = tokenizers.WpmTokenizer(
            vocab_filepath=case["vocab"],
            **{name: case[name] for name in ("append_eos", "merge_prob", "pad_to_max_length")},
        )
        assert_same(tokenizer.encode(given, case["maxlen"]), arrays)
        assert tokenizer.decode(arrays["target_ids"], arrays["lens"]) == case["decoded"]
    elif op == "vocab_list":
        keywords |= {"vocab": case["vocab_list"]}
        np.testing.assert_array_equal(
            tokenizers.vocab_token_to_id(given, **keywords), arrays["token_to_id"], strict=True
        )
        np.testing.assert_array_equal(tokenizers.token_in_vocab(given, **keywords), arrays["in_vocab"], strict=True)
        assert tokenizers.vocab_id_to_token(arrays["ids"], **keywords) == case["id_to_token"]
    elif op == "vocab_error":
        with pytest.raises(RequestError):
            tokenizers.vocab_token_to_id("a", vocab=case["vocab_list"], **keywords)
    elif "out_strings" in case:
        decode = getattr(tokenizers, op)
        assert decode(arrays["ids"], arrays["lens"], **keywords) == case["out_strings"]
    else:
        encode = getattr(tokenizers, op)
        assert_same(encode(given, **keywords), arrays)


def assert_same(got, arrays):
    for name, array in zip(OUTPUTS, got, strict=True):
        np.testing.assert_array_equal(array, arrays[name], strict=True)


def test_every_recording_of_lingvo(lingvo_vectors, vocabularies):
    cases = lingvo_vectors("e_tokenizers")
    assert len(cases) >= 53
    failed = []
    for case, arrays in cases:
        try:
            check(case, arrays)
        except AssertionError as error:
            failed.append((case["id"], error))
    assert failed == []


def test_scalars_and_lists():
    vocab = ["<s>", "</s>", "<unk>", "a"]
    assert tokenizers.vocab_token_to_id("a", vocab=vocab).shape == ()
    assert tokenizers.vocab_token_to_id([b"a", "b"], vocab=vocab).tolist() == [3, 2]
    assert tokenizers.vocab_id_to_token(3, vocab=vocab) == "a"
    assert tokenizers.vocab_id_to_token([], vocab=vocab) == []
    assert bool(tokenizers.token_in_vocab("a", vocab=vocab)) and not tokenizers.token_in_vocab(["b"], vocab=vocab)[0]
