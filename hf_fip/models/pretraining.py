"""A small BERT from nothing but text: tokenizer, word vectors from counts, then masked language modelling."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
from collections import Counter
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

from ..errors import InputError
from .initialization import initialize_from_counts_


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
    from_counts: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """
    Train a lower-casing WordPiece tokenizer and a BERT by masked language modelling (Devlin et al. 2019) from scratch.

    Made for small models on few cores: sequences of like length share a batch, so next to nothing is spent on padding;
    the output layer sees the masked positions only; training starts from counts instead of noise. A sequence never
    holds parts of two documents, which the first token's state, that classifiers read, would suffer from. A given
    seed, device and number of threads give the same weights.

    Args:
        texts (`Sequence[str]`): the documents.
        folder (`str` or `os.PathLike`): where the model and the tokenizer go; must not exist. It appears when it is
            complete.
        vocab_size (`int`, *optional*, defaults to 8000): most tokens of the tokenizer.
        config (`dict`, *optional*): fields of the `BertConfig`, as `hidden_size` and `num_hidden_layers`.
        epochs (`float`, *optional*, defaults to 1): passes over the texts.
        learning_rate (`float`, *optional*, defaults to 2e-3): peak of AdamW's learning rate; linear decay to 0.
        seq_length (`int`, *optional*, defaults to 128): most tokens of a sequence, at most the model's positions.
        batch_size (`int`, *optional*, defaults to 16): sequences of that length per step; of shorter ones as many more
            as make the same number of tokens.
        mask_probability (`float`, *optional*, defaults to 0.2): share of the tokens to be predicted, drawn anew for
            each step; of these 80 % become `[MASK]`, 10 % another token.
        warmup (`float`, *optional*, defaults to 0.06): share of the steps in which the learning rate rises.
        from_counts (`bool`, *optional*, defaults to `True`): whether to start from
            [`~hf_fip.models.initialization.initialize_from_counts_`].
        seed (`int`, *optional*, defaults to 0): seed of everything random.
        progress (`bool`, *optional*, defaults to `True`): whether a bar on standard error shows the progress.

    Returns:
        `Path`: the folder, with a `BertForMaskedLM` and its tokenizer.

    Raises:
        [`~hf_fip.errors.InputError`]: no text, a folder that exists, no epochs, or sequences longer than the model's
        positions.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"folder={os.fspath(folder)!r} exists: give one that does not.")
    if epochs <= 0:
        raise InputError(f"epochs={epochs}: give more than 0 passes over the texts.")
    bert = BertConfig(**{"max_position_embeddings": 256, **(config or {})})
    if not 3 <= seq_length <= bert.max_position_embeddings:
        raise InputError(
            f"seq_length={seq_length}: give 3 to max_position_embeddings={bert.max_position_embeddings} tokens."
        )

    tokenizer = train_tokenizer(texts, vocab_size, bert.max_position_embeddings)
    documents = _token_ids(tokenizer, texts)
    if not documents:
        raise InputError(f"texts holds {len(texts)} documents without a word: give at least one with text.")
    bert.vocab_size, bert.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    # Dropout slows a model down that sees each text a few times only; the configured rates return for fine-tuning.
    dropout = {name: getattr(bert, name) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
    for name in dropout:
        setattr(bert, name, 0.0)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    # The caller's random state stays as it is: whether a model comes from a cache must not change what follows.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # On the CPU plain matrix products are faster for short sequences than the fused attention.
        model = BertForMaskedLM._from_config(bert, attn_implementation="eager" if device.type == "cpu" else "sdpa")
        if from_counts:
            initialize_from_counts_(model, documents, seed)
        plan = _plan(documents, seq_length, batch_size * seq_length, epochs, seed)
        _train(model.to(device), plan, tokenizer, learning_rate, warmup, mask_probability, progress)

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
    normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(_MARKUP), " "), normalizers.BertNormalizer(lowercase=True)]
    )
    vocabulary = _vocabulary([normalizer.normalize_str(text) for text in texts], vocab_size)
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
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


def _vocabulary(texts: Sequence[str], size: int) -> dict[str, int]:
    """
    WordPiece's vocabulary of normalised texts, the same for the same texts. The trainer breaks ties by the pieces'
    ids, and numbers single characters in an order that differs from run to run: so they are numbered here, as its
    special tokens. The rarest of more than 200 characters stay unknown.
    """
    counts = Counter(itertools.chain.from_iterable(texts))
    characters = sorted((character for character in counts if not character.isspace()), key=lambda c: (-counts[c], c))
    rare = dict.fromkeys(map(ord, characters[200:]), " ")
    pieces = [prefix + character for prefix in ("", "##") for character in characters[:200]]
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=[*SPECIAL_TOKENS, *pieces], show_progress=False
    )
    tokenizer.train_from_iterator((text.translate(rare) for text in texts), trainer)
    return tokenizer.get_vocab()


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


def _token_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[np.ndarray]:
    if not texts:
        return []
    # verbose=False: a document longer than the model's positions is no mistake here, it is cut into sequences.
    ids = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [np.asarray(document, dtype=np.int64) for document in ids if document]


def _plan(
    documents: Sequence[np.ndarray], seq_length: int, tokens: int, epochs: float, seed: int
) -> list[list[np.ndarray]]:
    """The batches of all steps, each a list of pieces of documents; longer documents are cut anew in each epoch."""
    random = np.random.default_rng(seed)
    passes = [_batches(_cut(documents, seq_length - 2, random), tokens, random) for _ in range(math.ceil(epochs))]
    batches = list(itertools.chain.from_iterable(passes))
    return batches[: max(1, round(len(batches) * epochs / len(passes)))]


def _cut(documents: Sequence[np.ndarray], length: int, random: np.random.Generator) -> list[np.ndarray]:
    pieces = []
    for document in documents:
        first = int(random.integers(length // 4, length)) + 1 if len(document) > length else 0
        bounds = [0, *range(first or length, len(document), length), len(document)]
        pieces += [document[start:end] for start, end in itertools.pairwise(bounds)]
    return pieces


def _batches(pieces: list[np.ndarray], tokens: int, random: np.random.Generator) -> list[list[np.ndarray]]:
    """Pieces of like length together, at most `tokens` to a batch with padding and special tokens; in random order."""
    shuffled = random.permutation(len(pieces))
    lengths = np.array([len(pieces[index]) for index in shuffled])
    batches, longest = [[]], 0
    for index in shuffled[np.argsort(lengths // 8, kind="stable")]:
        longest = max(longest, len(pieces[index]) + 2)
        if batches[-1] and longest * (len(batches[-1]) + 1) > tokens:
            batches.append([])
            longest = len(pieces[index]) + 2
        batches[-1].append(pieces[index])
    return [batches[index] for index in random.permutation(len(batches))]


def _padded(pieces: list[np.ndarray], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    ids = torch.full((len(pieces), max(map(len, pieces)) + 2), tokenizer.pad_token_id)
    for row, piece in zip(ids, pieces, strict=True):
        row[0] = tokenizer.cls_token_id
        row[1 : len(piece) + 1] = torch.from_numpy(piece)
        row[len(piece) + 1] = tokenizer.sep_token_id
    return ids


def _mask(ids: Tensor, tokenizer: PreTrainedTokenizerFast, probability: float) -> tuple[Tensor, Tensor]:
    """What the model sees in place of `ids`, and which positions it has to predict."""
    specials = len(SPECIAL_TOKENS)
    masked = (torch.rand(ids.shape) < probability) & (ids >= specials)
    fate = torch.rand(ids.shape)
    inputs = torch.where(masked & (fate < 0.8), tokenizer.mask_token_id, ids)
    return torch.where(masked & (fate >= 0.9), torch.randint(specials, len(tokenizer), ids.shape), inputs), masked


def _train(
    model: BertForMaskedLM,
    plan: list[list[np.ndarray]],
    tokenizer: PreTrainedTokenizerFast,
    learning_rate: float,
    warmup: float,
    mask_probability: float,
    progress: bool,
):
    device = model.device
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=device.type in ("cpu", "cuda"),
    )
    schedule = get_linear_schedule_with_warmup(optimizer, round(warmup * len(plan)), len(plan))
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=_computes_in_bfloat16(device))
    spare = model.config.max_position_embeddings - max(len(piece) for pieces in plan for piece in pieces) - 2
    model.train()
    bar = tqdm(plan, desc="masked language modelling", mininterval=1.0, disable=None if progress else True)
    for step, pieces in enumerate(bar):
        ids = _padded(pieces, tokenizer)
        inputs, masked = _mask(ids, tokenizer, mask_probability)
        attended = ids != tokenizer.pad_token_id
        # Every other batch begins at a random position: the later ones are to be of use in longer texts as well.
        offset = int(torch.randint(spare + 1, ())) if step % 2 else 0
        with autocast:
            states = model.bert(
                inputs.to(device),
                attention_mask=None if attended.all() else attended.long().to(device),
                position_ids=torch.arange(offset, offset + ids.shape[1], device=device).expand_as(ids),
            ).last_hidden_state
            logits = model.cls(states[masked.to(device)])
            loss = torch.nn.functional.cross_entropy(logits.float(), ids[masked].to(device), reduction="sum")
        # A batch of very short texts may happen to have no masked token.
        loss = loss / max(1, int(masked.sum()))
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
