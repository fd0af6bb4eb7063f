"""The walls of the house: who may import whom, what may not be written at all, and the map that must fit the ground."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lorica

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/lorica"
FILES = sorted(SOURCE.rglob("*.py"))
QUICK = 0.5
"""Seconds that `import lorica` and the names it gives may take beyond torch."""


def in_new_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_point_down() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(
        [*command, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_help_imports_no_torch_and_no_transformers() -> None:
    code = (
        "import sys\nfrom lorica.cli.entry import run\n"
        "assert run(['--help']) == 0 and run(['train', '--help']) == 0\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'yaml', 'lorica.api') if name in sys.modules])"
    )
    assert in_new_python(code).splitlines()[-1] == "[]"


def test_importing_lorica_is_quick() -> None:
    """The best of three, as other work on the machine only ever adds."""
    code = "import torch, time; t = time.perf_counter(); import lorica; print(time.perf_counter() - t)"
    started = time.monotonic()
    best = min(float(in_new_python(code)) for _ in range(3) if time.monotonic() - started < 60)
    assert best < QUICK


def test_all_is_sorted_complete_and_importable() -> None:
    """Constants, then classes, then functions, as the linter sorts them."""
    names = lorica.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(lorica, name) is not None
    errors = {name for name, value in vars(lorica.errors).items() if isinstance(value, type) and name.endswith("Error")}  # type: ignore[attr-defined]
    assert errors <= set(names), "every error can be caught by its name"
    assert set(names) <= set(dir(lorica))
    with pytest.raises(AttributeError, match="lorca"):
        _ = lorica.lorca  # type: ignore[attr-defined]


def test_train_is_a_room_and_a_function() -> None:
    from lorica.train import TrainConfig

    assert lorica.TrainConfig is TrainConfig
    assert callable(lorica.train)


BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_MODULES = {"pickle", "dill", "marshal", "shelve", "joblib"}
BANNED_ATTRIBUTES = {
    ("torch", "load"),
    ("torch", "save"),
    ("os", "system"),
    ("os", "popen"),
    ("numpy", "load"),
    ("np", "load"),
}


def banned(tree: ast.AST) -> list[str]:
    """What a file does that reads code from data, or hands text to a shell."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [each.name for each in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: import {name}" for name in named if name.partition(".")[0] in BANNED_MODULES]
        elif isinstance(node, ast.Call):
            found += [f"{node.lineno}: {said}" for said in banned_call(node)]
    return found


def banned_call(node: ast.Call) -> list[str]:
    called = node.func
    said = [called.id] if isinstance(called, ast.Name) and called.id in BANNED_CALLS else []
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        pair = (called.value.id, called.attr)
        said += [".".join(pair)] if pair in BANNED_ATTRIBUTES else []
    shell = [word.value for word in node.keywords if word.arg == "shell"]
    said += ["shell=True" for value in shell if not (isinstance(value, ast.Constant) and value.value is False)]
    trusting = [word.value for word in node.keywords if word.arg == "trust_remote_code"]
    return said + [
        "trust_remote_code" for value in trusting if not (isinstance(value, ast.Constant) and not value.value)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_read_is_ever_executed(path: Path) -> None:
    assert banned(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "torch.load('x')",
        "subprocess.run('ls', shell=True)",
        "f(trust_remote_code=True)",
        "os.system('ls')",
    ],
)
def test_the_search_for_what_is_banned_finds_it(code: str) -> None:
    assert banned(ast.parse(code))


@pytest.mark.parametrize("code", ["model.eval()", "re.compile('x')", "run(['ls'], shell=False)", "model.load('x')"])
def test_the_search_for_what_is_banned_lets_the_rest_be(code: str) -> None:
    assert not banned(ast.parse(code))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_file_says_what_it_is_in_one_sentence_first(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text()))
    assert said, f"{path} has no docstring"


PATH = re.compile(r"`((?:src|tests|docs|recipes|examples|pretraining|benchmarks|\.ci)/[\w./*-]*)`")


def map_of(document: str) -> set[str]:
    """Every path that a document names in code marks."""
    return set(PATH.findall((ROOT / document).read_text()))


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"])
def test_every_path_that_a_document_names_is_there(document: str) -> None:
    missing = [path for path in map_of(document) if not list(ROOT.glob(path.rstrip("/")))]
    assert not missing


def test_every_source_file_is_on_the_map() -> None:
    """By its own path; the files of one folder may share a line, as `src/lorica/data/` followed by their names."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    lost = [str(path.relative_to(ROOT)) for path in FILES if not on_map(path.relative_to(ROOT), text)]
    assert not lost


def on_map(path: Path, text: str) -> bool:
    if f"`{path}`" in text:
        return True
    if path.name in {"__init__.py", "__main__.py"}:
        return f"`{path.parent}/" in text
    lines = [line for line in text.splitlines() if f"`{path.parent}/`" in line]
    return any(f"`{path.name}`" in line for line in lines)


COMMAND = re.compile(r"^\$? ?(lorica [a-z]+|make [a-z-]+)", re.MULTILINE)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_command_of_a_document_exists(document: str) -> None:
    from lorica.cli.app import COMMANDS

    named = COMMAND.findall((ROOT / document).read_text())
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = {f"lorica {name}" for name in COMMANDS} | {f"make {target}" for target in targets}
    assert named, "the document shows at least one command"
    assert set(named) <= known


def test_the_python_of_the_readme_is_python() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        tree = ast.parse(block)
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "lorica"
        }
        assert used <= set(lorica.__all__)


def test_constraints_pin_names_and_versions_alone() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9][0-9a-z.]*", line) for line in lines)
    assert "torch==2.13.0" in lines


def test_nothing_of_the_machine_it_was_made_on_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    files = [ROOT / name for name in listed if name.endswith((".py", ".md", ".yaml", ".toml", "Makefile", ".txt"))]
    private = re.compile("/" + "work/|/" + "root/|/home/[a-z]")
    assert [path.name for path in files if path.is_file() and private.search(path.read_text())] == []
