"""The scores by which translations are compared: Lingvo's BLEU, sacreBLEU and chrF."""

from __future__ import annotations

from collections.abc import Sequence

from raylingvo.metrics.bleu import corpus_bleu
from raylingvo.metrics.corpus_scores import CorpusScores


def translation_scores(hypotheses: Sequence[str], references: Sequence[str]) -> CorpusScores:
    """Scores of all translations of a test set, each with one reference: detokenized text, in its own case.

    corpus_bleu: Lingvo's BLEU, 0 to 1, on words between white space. sacrebleu: BLEU, 0 to 100, of sacrebleu's own
    tokens (13a, cased). chrf: chrF2, 0 to 100, on characters. The latter two with signatures; all are better if higher.
    Of no translations there is no score. Raises ValueError if there are not as many of both.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"references must be as many as hypotheses, {len(hypotheses)} (got {len(references)})")
    if not hypotheses:
        return CorpusScores()
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # force: no lines in the log about hypotheses that look tokenized. Other settings are the published defaults.
    judges = {"sacrebleu": BLEU(force=True), "chrf": CHRF()}
    metrics = {"corpus_bleu": corpus_bleu(hypotheses, references)}
    metrics |= {name: judge.corpus_score(hypotheses, [references]).score for name, judge in judges.items()}
    # A signature is complete after the scoring: it counts the references.
    return CorpusScores(metrics, {name: str(judge.get_signature()) for name, judge in judges.items()})
