"""A text classifier with transformers' Trainer: texts in, suspicious labels out.

The texts are real and on every machine that can run this: the documentation inside installed packages. The question:
is it NumPy's, PyTorch's, pandas' or Python's own? Every fifth label is flipped. The network is a bag of words, small
enough for a CPU, in the place where a transformer would stand. Trainer's AdamW trains it, so α has a learning rate of
its own. Ends with the test accuracy, the share of flipped labels among those found, and the most suspicious texts.
"""

import argparse
import ast
import importlib.util
import re
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path

import torch
import transformers

from fastac.integrations.transformers import AutoCleansingCallback

CLASSES = ["numpy", "torch", "pandas", "python"]
LENGTH = 64  # words of a text


def documentation(name, count):
    """Different docstrings of twelve words or more from a package's files, in their order."""
    if name == "python":
        folder = Path(sysconfig.get_path("stdlib"))
    else:
        folder = Path(importlib.util.find_spec(name).submodule_search_locations[0])
    found = {}
    for path in sorted(folder.rglob("*.py")):
        if len(found) >= count:
            break
        if not {"site-packages", "test", "tests"} & set(path.relative_to(folder).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    text = " ".join((ast.get_docstring(node) or "").split())
                    if len(words(text)) >= 12:
                        found[text] = None
    return list(found)[:count]


def words(text):
    """The first words in lower case, the packages' names left out."""
    return [word for word in re.findall(r"[a-z]+", text.lower()) if word not in CLASSES][:LENGTH]


class BagOfWords(torch.nn.Module):
    """The mean of a text's word vectors, and a linear layer. As transformers' models: names in, a dict out."""

    def __init__(self, num_words, num_classes, width=64):
        super().__init__()
        self.vectors = torch.nn.EmbeddingBag(num_words, width, padding_idx=0)
        self.head = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(width, num_classes))

    def forward(self, input_ids, labels=None):
        return {"logits": self.head(self.vectors(input_ids))}


def items(texts, labels, vocabulary):
    """What Trainer's collator takes. Word number 0 is padding, 1 an unknown word."""
    rows = [[vocabulary.get(word, 1) for word in words(text)] for text in texts]
    return [
        {"input_ids": row + [0] * (LENGTH - len(row)), "label": int(label)}
        for row, label in zip(rows, labels, strict=True)
    ]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--per-class", type=int, default=500, help="texts of each class (default %(default)s)")
parser.add_argument("--epochs", type=int, default=15)
parser.add_argument("--output", help="folder for Trainer's checkpoints (default: none are kept)")
options = parser.parse_args()

transformers.set_seed(0)
corpus = [(text, y) for y, name in enumerate(CLASSES) for text in documentation(name, options.per_class)]
texts, truth = zip(*(corpus[i] for i in torch.randperm(len(corpus))), strict=True)
N, K = len(texts) * 4 // 5, len(CLASSES)
truth = torch.tensor(truth)
flipped = torch.rand(N) < 0.2
labels = torch.where(flipped, (truth[:N] + torch.randint(1, K, (N,))) % K, truth[:N])

counts = Counter(word for text in texts[:N] for word in words(text))
vocabulary = {word: number for number, (word, _) in enumerate(counts.most_common(3000), start=2)}
cleansing = AutoCleansingCallback(N, K, lr=30.0)  # α's own learning rate; the network has Trainer's
with tempfile.TemporaryDirectory() as scratch:
    trainer = transformers.Trainer(
        BagOfWords(len(vocabulary) + 2, K),
        transformers.TrainingArguments(
            output_dir=options.output or scratch,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=32,
            learning_rate=5e-3,
            save_strategy="epoch" if options.output else "no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=cleansing.with_ids(items(texts[:N], labels, vocabulary)),
        callbacks=[cleansing],
        compute_loss_func=cleansing.compute_loss,
    )
    trainer.train()
    outputs = trainer.predict(items(texts[N:], truth[N:], vocabulary)).predictions

issues = cleansing.cleansing.issues(labels, class_names=CLASSES)
found = issues["index"][: int(flipped.sum())].tolist()
print(f"test accuracy {(outputs.argmax(1) == truth[N:].numpy()).mean():.1%}")
print(f"of the {len(found)} most suspicious labels, {flipped[found].float().mean():.1%} were flipped")
for row in issues.head(5).itertuples():
    print(f"  given {row.given_class}, perhaps {row.suggested_class}: {texts[row.index][:80]}")
