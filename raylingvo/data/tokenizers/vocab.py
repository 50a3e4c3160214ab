"""A table of tokens: a line each, with an id in a second column or by position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raylingvo.errors import RequestError

_LOWER = (b"<s>", b"</s>", b"<unk>")
_UPPER = (b"<S>", b"</S>", b"<UNK>")
_INT32 = range(-(2**31), 2**31)


class Vocab:
    """Token <-> id. Rules: Lingvo's simple_vocab.cc.

    lines: (number, line) of the lines that are not empty. Columns are separated by tabs; the first is the token, which
    may have any other character. name: of the file, for error messages. load_token_ids: the id is the second column;
    otherwise ids count from 0. Of a token or an id that occurs again, the last line counts.

    Raises RequestError if an id is missing or not an integer, or unless the tokens have either all of <s>, </s>, <unk>
    or all of <S>, </S>, <UNK>, and none of the others.
    """

    def __init__(self, lines: Iterable[tuple[int, bytes]], name: str, load_token_ids: bool):
        ids: dict[bytes, int] = {}
        tokens: dict[int, bytes] = {}
        for position, (number, line) in enumerate(lines):
            token, _, rest = line.partition(b"\t")
            id_ = _id(rest, f"{name}:{number}") if load_token_ids else position
            ids[token] = id_
            tokens[id_] = token
        specials, others = (_LOWER, _UPPER) if _LOWER[0] in ids else (_UPPER, _LOWER)
        if missing := [token for token in specials if token not in ids]:
            raise RequestError(
                f"{name} has no {_names(missing)}; a vocabulary needs {_names(_LOWER)}, or {_names(_UPPER)}"
            )
        if mixed := [token for token in others if token in ids]:
            raise RequestError(f"{name} has {_names(mixed)} as well as {specials[0].decode()}; keep one case")
        self.ids: Mapping[bytes, int] = ids
        self.tokens: Mapping[int, bytes] = tokens
        self.sos_id, self.eos_id, self.unk_id = (ids[token] for token in specials)
        self.unk_token = specials[2]

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.tokens) + 1

    def id_of(self, token: bytes) -> int:
        """The id of a token; of one that is not there, that of <unk>."""
        return self.ids.get(token, self.unk_id)

    def token_of(self, id_: int) -> bytes:
        """The token of an id; of one that is not there, <unk>."""
        return self.tokens.get(id_, self.unk_token)


def _id(columns: bytes, where: str) -> int:
    column = columns.partition(b"\t")[0]
    try:
        id_ = int(column)
    except ValueError:
        raise RequestError(
            f"{where} must be a token, a tab, and its id (got {column.decode(errors='replace')!r} as id); "
            "for ids by line number set load_token_ids_from_vocab=false"
        ) from None
    if id_ not in _INT32:
        raise RequestError(f"{where}: an id must fit into 32 bits (got {id_})")
    return id_


def _names(tokens: Iterable[bytes]) -> str:
    return ", ".join(token.decode() for token in tokens)
