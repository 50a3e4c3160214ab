"""The punctuator: its sources have no capitals and no punctuation, whatever the lines of text have."""

import numpy as np

from raylingvo.data.tokenizers import AsciiTokenizer
from raylingvo.models.mt.decoding import Decoding
from raylingvo.models.mt.transformer_model import TransformerModel
from raylingvo.models.punctuator.punctuator import Punctuator


def test_lines_are_read_without_capitals_and_punctuation():
    tokenizer = AsciiTokenizer()
    task = Punctuator(
        model=TransformerModel(source_vocab_size=76, target_vocab_size=76),
        source_tokenizer=tokenizer,
        target_tokenizer=tokenizer,
    )
    batch = task.encode_lines(["Hello,  World!", "hello world"])
    np.testing.assert_array_equal(batch["src_ids"][0], batch["src_ids"][1])
    prefixed = Punctuator(
        model=task.model,
        source_tokenizer=tokenizer,
        target_tokenizer=tokenizer,
        decoding=Decoding(forced_prefix=True),
    ).encode_lines(["Hello, World!\they, "])
    np.testing.assert_array_equal(prefixed["src_ids"][0], batch["src_ids"][0])
    assert tokenizer.decode(prefixed["prefix_ids"], prefixed["prefix_lens"]) == ["hey, "]
