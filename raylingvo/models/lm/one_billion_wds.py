"""Language models on the one-billion-word benchmark: LSTMs of words, and a Transformer of word pieces.

The data: `raylingvo data prepare lm1b`. The vocabularies, that of words with the most frequent ones first, as the
sampled softmax wants them:

    raylingvo data vocab lm1b/train.parquet --field text --type words --size 793472 --out lm1b/vocab.txt
    raylingvo data vocab lm1b/train.parquet --field text --type wpm --size 32000 --out lm1b/wpm-32k.txt

Lingvo: tasks/lm/params/one_billion_wds.py; the LSTMs are those of Jozefowicz et al., arXiv:1602.02410.
"""

from __future__ import annotations

import dataclasses
import math

from raylingvo.data.text import TextLines
from raylingvo.data.tokenizers import VocabFileTokenizer, WpmTokenizer
from raylingvo.experiment import Experiment, Reading, Snapshots, Train
from raylingvo.models.layers.attention import AttentionConfig
from raylingvo.models.layers.feed_forward import FeedForwardConfig
from raylingvo.models.layers.residual import ResidualConfig
from raylingvo.models.layers.transformer import TransformerConfig
from raylingvo.models.lm.language_model import LanguageModel
from raylingvo.models.lm.rnn_lm import RnnLm
from raylingvo.models.lm.transformer_lm import TransformerLm
from raylingvo.registry import register
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Adagrad, Adam
from raylingvo.training.schedules import Cosine, Transformer

# The words that occur at least three times, and the special ids.
VOCAB_SIZE = 793_472
_BUCKETS = (10, 20, 30, 40, 50, 100, 256, 512, 1024)
_TRAIN_BATCHES = (1024, 512, 256, 256, 128, 128, 64, 32, 16)
_EVAL_BATCHES = (128, 64, 32, 32, 16, 16, 4, 2, 1)


def _sentences(split: str, vocab: str, batch_sizes: tuple[int, ...]) -> TextLines:
    return TextLines(
        records=f"lm1b/{split}.parquet",
        field="text",
        tokenizer=_tokenizer(vocab),
        bucket_bounds=_BUCKETS,
        bucket_batch_sizes=batch_sizes,
    )


def _tokenizer(vocab: str) -> VocabFileTokenizer:
    return VocabFileTokenizer(token_vocab_filepath=f"lm1b/{vocab}")


def _unit_scaling(num_shards: int, num_rows: int = VOCAB_SIZE) -> float:
    """l of U(-l, l). Lingvo splits a table into shards, each drawn by UniformUnitScaling(num_shards) for its rows."""
    return num_shards * math.sqrt(3 * num_shards / num_rows)


@register("lm.one_billion_wds.WordLevelOneBwdsSimpleSampledSoftmax")
def word_level_one_bwds_simple_sampled_softmax() -> Experiment:
    """Big LSTM of 1.8 billion weights, sampled softmax over 793,472 words, Lingvo's recipe: Adagrad 0.2, sum of losses.

    Its vocabulary has <unk>, <s> and </s> where Lingvo's has <epsilon>, <S>, </S> and <UNK>, so one word more.
    """
    return Experiment(
        task=LanguageModel(
            model=RnnLm(
                vocab_size=VOCAB_SIZE,
                features=1024,
                hidden_features=8192,
                embedding_dropout=0.25,
                rnn_dropout=0.25,
                max_lstm_gradient_norm=16.0,
                embedding_init=_unit_scaling(8),
                softmax_init=_unit_scaling(8),
                # 32 chunks. A batch of evaluation has 1,600 tokens or fewer: 160 MB of logits instead of 5 GB.
                classes_per_chunk=24_796,
            ),
            num_sampled=8192,
            sum_loss_over_tokens=True,
            tokens_are_words=True,
            tokenizer=_tokenizer("vocab.txt"),
        ),
        datasets={
            "train": _sentences("train", "vocab.txt", _TRAIN_BATCHES),
            "dev": _sentences("dev", "vocab.txt", _EVAL_BATCHES),
            "test": _sentences("test", "vocab.txt", _EVAL_BATCHES),
        },
        # The accumulators start from 1: the sum over tokens makes gradients large.
        learner=Learner(learning_rate=0.2, optimizer=Adagrad()),
        train=Train(
            batch_size=_TRAIN_BATCHES[0],
            max_steps=4_000_000,  # Lingvo's: a limit for a job that somebody watches
            snapshots=Snapshots(every_steps=1000, max_bytes=64 << 30),  # 14 GB each, with the accumulators
        ),
        eval={"dev": Reading(), "test": Reading()},
    )


@register("lm.one_billion_wds.WordLevelOneBwdsSimpleSampledSoftmaxTiny")
def word_level_one_bwds_simple_sampled_softmax_tiny() -> Experiment:
    """The same with 7 features, an LSTM state of 32 and 8 samples: for debugging."""
    big = word_level_one_bwds_simple_sampled_softmax()
    assert isinstance(big.task, LanguageModel) and isinstance(big.task.model, RnnLm)
    model = dataclasses.replace(big.task.model, features=7, hidden_features=32, embedding_init=_unit_scaling(1))
    return dataclasses.replace(
        big,
        task=dataclasses.replace(big.task, model=model, num_sampled=8),
        train=dataclasses.replace(big.train, snapshots=Snapshots()),
    )


@register("lm.one_billion_wds.OneBWdsGPipeTransformerWPM")
def one_b_wds_gpipe_transformer_wpm() -> Experiment:
    """Transformer of 1.7 billion weights, 32 layers, on word pieces; a sentence in each row of 1,024.

    Lingvo's recipe: Adam 0.5 with the Transformer's schedule, no clipping. Lingvo cuts the layers into 4 stages of a
    pipeline, with a sentence at a time in each, which changes no number; here they are scanned and rematerialised. Its
    tokenizer is a placeholder; here a vocabulary of word pieces is read.
    """
    dim, vocab_size, batch_size = 2048, 32_000, 32
    tokenizer = WpmTokenizer(vocab_filepath="lm1b/wpm-32k.txt")

    def sentences(split: str) -> TextLines:
        return TextLines(
            records=f"lm1b/{split}.parquet",
            field="text",
            tokenizer=tokenizer,
            bucket_bounds=(1024,),
            bucket_batch_sizes=(batch_size,),
        )

    residual = ResidualConfig(dropout_rate=0.1)
    stack = TransformerConfig(
        num_layers=32,
        attention=AttentionConfig(model_dim=dim, num_heads=16, dropout_rate=0.1),
        feed_forward=FeedForwardConfig(hidden_dim=4 * dim),
        residual=residual,
        attention_residual=dataclasses.replace(residual, skip="normalized"),
        final_norm=False,
        scan=True,
        remat="nothing_saveable",
    )
    model = TransformerLm(
        vocab_size=vocab_size,
        stack=stack,
        sinusoid_positions=True,
        tied_softmax=False,
        embedding_stddev=dim**-0.5,
        tokens_per_chunk=(128 << 20) // vocab_size,
    )
    return Experiment(
        task=LanguageModel(model=model, tokenizer=tokenizer),
        datasets={split: sentences(split) for split in ("train", "dev", "test")},
        learner=Learner(
            learning_rate=0.5,
            schedule=Transformer(warmup_steps=40_000, model_dim=dim),
            optimizer=Adam(beta1=0.9, beta2=0.997, epsilon=1e-9),
        ),
        train=Train(
            batch_size=batch_size,
            max_steps=4_000_000,
            snapshots=Snapshots(every_steps=1000, max_bytes=64 << 30),  # 21 GB each, with Adam's moments
        ),
        eval={"dev": Reading(), "test": Reading()},
    )


@register("lm.one_billion_wds.WordLevelSmall")
def word_level_small() -> Experiment:
    """raylingvo's own: 4,000 words, 2 LSTMs of 256, 512 samples, Adam and a cosine; 5 minutes on 2 CPUs.

    Its vocabulary: `raylingvo data vocab lm1b/train.parquet --field text --type words --size 4000 --out
    lm1b/vocab-4k.txt`.
    """
    vocab, bounds = "vocab-4k.txt", (10, 20, 30, 40, 60)

    def sentences(split: str) -> TextLines:
        return dataclasses.replace(_sentences(split, vocab, ()), bucket_bounds=bounds)

    return Experiment(
        task=LanguageModel(
            model=RnnLm(
                vocab_size=4000,
                features=128,
                hidden_features=256,
                embedding_dropout=0.25,
                rnn_dropout=0.25,
                embedding_init=128**-0.5,
                softmax_init=0.05,
            ),
            num_sampled=512,
            tokens_are_words=True,
            tokenizer=_tokenizer(vocab),
        ),
        datasets={split: sentences(split) for split in ("train", "dev", "test")},
        learner=Learner(
            learning_rate=2e-3,
            schedule=Cosine(total_steps=4_000, final_value=0.05),
            optimizer=Adam(),
            clip_gradient_norm_to_value=1.0,
        ),
        train=Train(batch_size=32, max_steps=4_000, report_every_steps=100, snapshots=Snapshots(every_steps=500)),
        eval={"dev": Reading(), "test": Reading(policy="last")},
    )
