"""What the package promises as a whole: its dependencies, its layers, its README."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The layers of the package, lowest first: a module may import from its own layer and from those before it.
LAYERS = [
    [
        "version",
        "extras",
        "rng",
        "reference",
        "groups",
        "partition",
        "validation",
        "links",
        "parts",
        "collectives",
    ],
    ["frames", "history"],
    ["clock"],
    ["contract"],
    ["eager"],
    ["kernels"],
    ["cpu", "cuda", "triton"],
    ["backends"],
    ["exchange", "gather"],
    ["table", "dynamics", "costs"],
    ["sharded"],
    ["sharded_dynamics"],
    ["ops"],
    ["functional"],
    ["loss"],
    ["issues", "advice", "compat", "decisions"],
    ["integrations"],
    ["data", "models", "report"],
    ["config"],
    ["checkpoint_state", "checkpoint_files"],
    ["checkpoint_manifest"],
    ["checkpoint_writer"],
    ["engine", "optim", "ema", "graphs", "weights", "metrics", "tracing", "checkpoint"],
    ["results"],
    ["training_data", "network", "storage", "run", "stopping"],
    ["run_data", "job"],
    ["evaluation", "reporting"],
    ["train"],
    ["earlier"],
    ["demo", "plan", "review", "apply", "paper"],
]


def test_the_core_needs_torch_and_numpy_only():
    """Train, rank and save with every optional package hidden."""
    code = """
import sys
hidden = {"pandas", "matplotlib", "PIL", "sklearn", "scipy", "tqdm", "tensorboard", "tomli_w", "triton", "nvidia",
          "deepspeed", "apex", "torchvision", "timm", "pyarrow",
          "lightning", "pytorch_lightning", "transformers", "accelerate"}
class Hide:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
import torch, fastac, fastac.compat, fastac.integrations
assert "torch._dynamo" not in sys.modules  # seconds that an import of a loss must not take
table = fastac.AlphaTable(10, 3, momentum=0.9)
table.lr = 0.1
dynamics = fastac.TrainingDynamics(10, 3)
criterion = fastac.AutoCleansingLoss(table, dynamics=dynamics)
index = torch.arange(6)
criterion(torch.randn(6, 3, requires_grad=True), index % 3, index).backward()
table.step()
assert table.dense().abs().max() > 0 and int(dynamics.count.sum()) == 6
try:
    fastac.find_label_issues(table, [0] * 10)
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "needs pandas" in done.stdout
    assert "pip install 'autocleansing[report]'" in done.stdout


def imports(path):
    """Names under fastac that a file imports when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    deferred = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    typing_only = {id(n) for f in ast.walk(tree) if isinstance(f, ast.If) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in deferred | typing_only and node.module:
            if node.module == "fastac":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("fastac."):
                yield node.module.split(".")[1]


def test_imports_point_down():
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    files = [p for p in (ROOT / "fastac").rglob("*.py") if not {"recipes", "kernels"} & set(p.parts)]
    files += (ROOT / "fastac" / "kernels").glob("*.py")  # a link, which not every version follows
    seen = set()
    for path in files:
        name = path.relative_to(ROOT / "fastac").parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        seen.add(name)
        for imported in imports(path):
            own = len(LAYERS) if path.name == "__main__.py" else level[name]  # a command may use everything
            assert level[imported] <= own, f"{path} imports {imported}, which lies above it"
    assert seen == set(level), "LAYERS and the package differ"


def test_only_one_file_registers_operators():
    users = [
        p.name for p in (ROOT / "fastac").rglob("*.py") if "torch.library.Library(" in p.read_text("utf-8")
    ]
    assert users == ["ops.py"]


def test_the_readmes_loop_runs():
    import torch

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (loop,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    torch.manual_seed(0)
    n, k = 40, 4
    labels = torch.randint(k, (n,))
    model = torch.nn.Linear(6, k)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    images = torch.randn(n, 6)
    loader = [(images[i], labels[i], i) for i in torch.randperm(n).split(8)]
    names = dict(
        N=n, K=k, model=model, optimizer=optimizer, scheduler=scheduler, loader=loader, labels=labels
    )
    exec(loop, names)
    assert names["table"].dense().abs().max() > 0
    assert len(names["issues"]) == n


def test_nothing_shipped_reads_the_workshop():
    """The package runs without the checkout's surroundings."""
    for path in [*(ROOT / "fastac").rglob("*.py"), *(ROOT / "examples").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "../shared" not in text, path
        assert "FASTAC_TEST_DATA" not in text, path
