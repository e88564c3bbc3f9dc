"""Fixtures for several rooms: tiny models with random weights, made on the spot, so that no test downloads anything."""

import os
import signal
from pathlib import Path

import pytest

# Before any test imports transformers: a test that would reach for the network fails instead.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A shell starts what runs in its background with Ctrl-C ignored, and so would be what the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = [
    *["red", "fox", "hen", "barn", "dog", "cat", "river", "stone", "bridge", "paper", "graph", "index", "search"],
    *["vector", "sparse", "dense", "score", "query", "answer", "number", "matrix", "prime", "proof", "theorem"],
    *["music", "song", "guitar", "piano", "garden", "tree", "leaf", "flower"],
]


def _save_tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *WORDS]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    ).save_pretrained(folder)
    return len(pieces)


def _save_bert(folder: Path, *, masked_lm: bool, seed: int) -> Path:
    torch = pytest.importorskip("torch", reason="needs sparing[text]")
    transformers = pytest.importorskip("transformers", reason="needs sparing[text]")
    folder.mkdir()
    vocabulary = _save_tokenizer(folder)
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (transformers.BertForMaskedLM if masked_lm else transformers.BertModel)(config)
    model.eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dense_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Hugging Face directory: a BERT of 2 layers and 32 dimensions with random weights. Read only."""
    return _save_bert(tmp_path_factory.mktemp("models") / "dense", masked_lm=False, seed=0)


@pytest.fixture(scope="session")
def other_dense_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny_dense_model` with other weights. Read only."""
    return _save_bert(tmp_path_factory.mktemp("models") / "dense", masked_lm=False, seed=1)


@pytest.fixture(scope="session")
def tiny_splade_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain masked-language-model directory with random weights. Read only."""
    return _save_bert(tmp_path_factory.mktemp("models") / "splade", masked_lm=True, seed=2)
