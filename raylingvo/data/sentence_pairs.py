"""Lingvo's SentencePair messages: translation pairs as text in records of bytes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from raylingvo.data import fields
from raylingvo.data.text import EncodedPairs
from raylingvo.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePairs(EncodedPairs):
    """Sentence pairs in protocol buffers, as of Lingvo's TextPackedInput (`sentence_proto`). Batches as of TextPairs.

    A record is a SentencePair of Lingvo's text_input.proto: src_sentence and tgt_sentence, Sentences with a `sentence`.
    Their `lang` is not read, as in Lingvo.
    """

    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer

    def _tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        return self.source_tokenizer, self.target_tokenizer

    def _texts(self, records: list[Any]) -> tuple[Sequence[str], Sequence[str]]:
        pairs = [sentence_pair(record) for record in records]
        return [source for source, _ in pairs], [target for _, target in pairs]


def sentence_pair(serialized: bytes) -> tuple[str, str]:
    """The source and the target of a serialized SentencePair. Raises ValueError if it is none, or not UTF-8."""
    messages = _messages()
    try:
        pair = messages.parse(serialized)
    except messages.decode_error as e:
        raise ValueError(f"these {len(serialized)} bytes are no SentencePair") from e
    names = ("src_sentence", "tgt_sentence")
    for name in names:
        # Anything with a message in its first field would pass for a source: a tf.Example, for one.
        if not pair.HasField(name):
            raise ValueError(f"these {len(serialized)} bytes are no SentencePair: there is no {name}")
    source, target = (fields.text({name: getattr(pair, name).sentence}, name) for name in names)
    return source, target


class _Messages(NamedTuple):
    parse: Callable[[bytes], Any]
    decode_error: type[Exception]


@functools.cache
def _messages() -> _Messages:
    """Built at run time: generated code works with some versions of protobuf only."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

    proto = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="raylingvo/text_input.proto", package="raylingvo", syntax="proto2")
    sentence = file.message_type.add(name="Sentence")
    # Lingvo's is a string, of which protobuf may or may not check the UTF-8.
    sentence.field.add(name="sentence", number=1, type=proto.TYPE_BYTES, label=proto.LABEL_OPTIONAL)
    pair = file.message_type.add(name="SentencePair")
    for number, name in enumerate(("src_sentence", "tgt_sentence"), 1):
        field = pair.field.add(name=name, number=number, type=proto.TYPE_MESSAGE, label=proto.LABEL_OPTIONAL)
        field.type_name = ".raylingvo.Sentence"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("raylingvo.SentencePair"))
    return _Messages(parse=made.FromString, decode_error=message.DecodeError)
