"""A small BERT from nothing but text: tokenizer, word vectors from counts, then masked language modelling."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    get_linear_schedule_with_warmup,
)
from transformers.utils import logging

from ..errors import InputError
from .word_vectors import count_vectors


logger = logging.get_logger(__name__)

# Standard deviation of the word vectors that counting gives: large enough for attention to tell words apart at once.
VECTOR_SCALE = 0.05
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Line breaks of web pages, and the marks of tokenised corpora (WikiText), say nothing.
_MARKUP = r"<br\s*/?>|<unk>|@-@|@,@|@\.@"


def pretrain_masked_lm(
    texts: Sequence[str],
    folder: str | os.PathLike,
    *,
    vocab_size: int = 8000,
    config: dict | None = None,
    epochs: float = 1.0,
    learning_rate: float = 2e-3,
    seq_length: int = 128,
    batch_size: int = 16,
    mask_probability: float = 0.2,
    warmup: float = 0.06,
    vectors_from_counts: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """
    Train a lower-casing WordPiece tokenizer and a BERT by masked language modelling (Devlin et al. 2019) from scratch.

    Made for small models on few cores: the texts are packed into full sequences, so nothing is spent on padding; the
    output layer sees the masked positions only; word vectors start from co-occurrence counts. A given seed, device and
    number of threads give the same weights.

    Args:
        texts (`Sequence[str]`): the documents.
        folder (`str` or `os.PathLike`): where the model and the tokenizer go; must not exist. It appears when it is
            complete.
        vocab_size (`int`, *optional*, defaults to 8000): most tokens of the tokenizer.
        config (`dict`, *optional*): fields of the `BertConfig`, as `hidden_size` and `num_hidden_layers`.
        epochs (`float`, *optional*, defaults to 1): passes over the texts.
        learning_rate (`float`, *optional*, defaults to 2e-3): peak of AdamW's learning rate; linear decay to 0.
        seq_length (`int`, *optional*, defaults to 128): tokens of a sequence, at most the model's positions.
        batch_size (`int`, *optional*, defaults to 16): sequences per step.
        mask_probability (`float`, *optional*, defaults to 0.2): share of the tokens to be predicted, drawn anew for
            each step; of these 80 % become `[MASK]`, 10 % another token.
        warmup (`float`, *optional*, defaults to 0.06): share of the steps in which the learning rate rises.
        vectors_from_counts (`bool`, *optional*, defaults to `True`): whether word vectors start from
            [`~hf_fip.models.word_vectors.count_vectors`] instead of noise.
        seed (`int`, *optional*, defaults to 0): seed of everything random.
        progress (`bool`, *optional*, defaults to `True`): whether a bar on standard error shows the progress.

    Returns:
        `Path`: the folder, with a `BertForMaskedLM` in evaluation mode and its tokenizer.

    Raises:
        [`~hf_fip.errors.InputError`]: no text, a folder that exists, or sequences longer than the model's positions.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"folder={os.fspath(folder)!r} exists: give one that does not.")
    texts = [text for text in texts if text and not text.isspace()]
    if not texts:
        raise InputError("texts holds no text: give at least one document.")
    bert = BertConfig(**{"max_position_embeddings": 256, **(config or {})})
    if not 3 < seq_length <= bert.max_position_embeddings:
        raise InputError(
            f"seq_length={seq_length}: must be 4 to max_position_embeddings={bert.max_position_embeddings}."
        )

    tokenizer = train_tokenizer(texts, vocab_size, bert.max_position_embeddings)
    documents = [np.asarray(ids, dtype=np.int64) for ids in _token_ids(tokenizer, texts)]
    bert.vocab_size, bert.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    # Dropout slows a model down that sees each text a few times only; the configured rates return for fine-tuning.
    dropout = {name: getattr(bert, name) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
    for name in dropout:
        setattr(bert, name, 0.0)
    stream = torch.from_numpy(np.concatenate([np.append(ids, tokenizer.sep_token_id) for ids in documents]))
    batches = _Batches(stream, tokenizer, min(seq_length, len(stream) + 2), batch_size, mask_probability, seed)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    # The caller's random state stays as it is: whether a model comes from a cache must not change what follows.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # On the CPU plain matrix products are faster for short sequences than the fused attention.
        model = BertForMaskedLM._from_config(bert, attn_implementation="eager" if device.type == "cpu" else "sdpa")
        _initialise(model, documents, vectors_from_counts, seed)
        _train(model.to(device), batches, epochs, learning_rate, warmup, progress)

    for name, rate in dropout.items():
        setattr(model.config, name, rate)
    with complete_folder(folder) as unfinished:
        model.cpu().eval().save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return folder


def train_tokenizer(texts: Sequence[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """
    A lower-casing WordPiece tokenizer with BERT's special tokens, which drops HTML line breaks and WikiText's marks.

    Args:
        texts (`Sequence[str]`): the documents.
        vocab_size (`int`): most tokens.
        max_length (`int`): length to which it truncates when asked to, in tokens.

    Returns:
        `PreTrainedTokenizerFast`
    """
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(_MARKUP), " "), normalizers.BertNormalizer(lowercase=True)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        limit_alphabet=200,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@contextlib.contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """
    A folder that appears only when it is complete.

    Args:
        folder (`Path`): the folder; must not exist when the block ends.

    Yields:
        `Path`: an empty folder beside it to write to, which is renamed at the end and removed on an error. A killed
        process leaves it behind; its name begins with a dot and `folder`'s name.
    """
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _token_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    # verbose=False: a document longer than the model's positions is no mistake here, it is cut into sequences.
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


@torch.no_grad()
def _initialise(model: BertForMaskedLM, documents: list[np.ndarray], vectors_from_counts: bool, seed: int):
    """What counting can tell is written into the weights: word vectors, and word frequencies as the output bias."""
    vocab_size, size = model.config.vocab_size, model.config.hidden_size
    frequencies = np.bincount(np.concatenate(documents), minlength=vocab_size) + 1.0
    model.cls.predictions.bias.copy_(torch.from_numpy(np.log(frequencies / frequencies.sum())))
    if vectors_from_counts and size < vocab_size:
        gap = np.full(5, -1)
        stream = np.concatenate([np.append(ids, gap) for ids in documents])
        vectors = torch.from_numpy(count_vectors(stream, vocab_size, size, seed=seed))
        vectors[model.config.pad_token_id] = 0
        model.get_input_embeddings().weight.copy_(vectors * VECTOR_SCALE)


class _Batches:
    """
    Masked batches without padding: the documents in a row, cut into sequences at other places in each epoch.

    Args:
        stream (`torch.Tensor` of shape `(tokens,)`): the documents' token ids with a separator after each.
        tokenizer (`PreTrainedTokenizerFast`): knows the special tokens.
        seq_length (`int`): tokens of a sequence, two of them special.
        batch_size (`int`): sequences of a batch.
        mask_probability (`float`): share of the tokens to be predicted.
        seed (`int`): seed of cuts, order and masks.
    """

    def __init__(
        self,
        stream: Tensor,
        tokenizer: PreTrainedTokenizerFast,
        seq_length: int,
        batch_size: int,
        mask_probability: float,
        seed: int,
    ):
        self.stream = stream
        self.tokenizer = tokenizer
        self.body = seq_length - 2
        self.batch_size = batch_size
        self.mask_probability = mask_probability
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.stream) // self.body / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields input ids `(batch, seq_length)`, which positions are masked, and the ids that belong there."""
        shift = int(torch.randint(len(self.stream), (1,), generator=self.generator))
        pieces = len(self.stream) // self.body
        bodies = self.stream.roll(-shift)[: pieces * self.body].view(pieces, self.body)
        first = torch.full((pieces, 1), self.tokenizer.cls_token_id)
        last = torch.full((pieces, 1), self.tokenizer.sep_token_id)
        sequences = torch.cat([first, bodies, last], dim=1)
        for rows in torch.randperm(pieces, generator=self.generator).split(self.batch_size):
            yield self._mask(sequences[rows])

    def _mask(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        specials = len(SPECIAL_TOKENS)
        masked = (torch.rand(ids.shape, generator=self.generator) < self.mask_probability) & (ids >= specials)
        fate = torch.rand(ids.shape, generator=self.generator)
        others = torch.randint(specials, len(self.tokenizer), ids.shape, generator=self.generator)
        inputs = torch.where(masked & (fate < 0.8), self.tokenizer.mask_token_id, ids)
        inputs = torch.where(masked & (fate >= 0.9), others, inputs)
        return inputs, masked, ids[masked]


def _train(
    model: BertForMaskedLM, batches: _Batches, epochs: float, learning_rate: float, warmup: float, progress: bool
):
    device = model.device
    model.train()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=device.type in ("cpu", "cuda"),
    )
    steps = max(1, round(len(batches) * epochs))
    schedule = get_linear_schedule_with_warmup(optimizer, round(warmup * steps), steps)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=_computes_in_bfloat16(device))
    endless = itertools.chain.from_iterable(itertools.repeat(batches))
    bar = tqdm(
        itertools.islice(endless, steps),
        total=steps,
        desc="masked language modelling",
        mininterval=1.0,
        disable=not progress,
    )
    for step, (inputs, masked, targets) in enumerate(bar):
        with autocast:
            states = model.bert(inputs.to(device)).last_hidden_state
            logits = model.cls(states[masked.to(device)])
            loss = torch.nn.functional.cross_entropy(logits.float(), targets.to(device), reduction="sum")
        # A batch of a very short text may happen to have no masked token.
        loss = loss / max(1, len(targets))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; emulated it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
