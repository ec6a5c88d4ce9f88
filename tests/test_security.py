"""What docs/security.md says, of the code and of the documents."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = sorted([*(ROOT / "phenoscape_tune").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
# Modules that run what they read, and calls that start a shell or run text.
RUNS_WHAT_IT_READS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNS_TEXT = {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
READS_YAML = {"yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all"}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(each.value) for each in call.keywords if each.arg == name), None)


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run_and_no_shell_is_started(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {name.split(".")[0] for name in names} & RUNS_WHAT_IT_READS
    for name, call in calls(path):
        assert name not in RUNS_TEXT | READS_YAML
        assert keyword(call, "shell") in (None, "False")
        assert keyword(call, "allow_pickle") in (None, "False")
        if name.endswith("torch.load"):
            assert keyword(call, "weights_only") == "True"
        if name == "yaml.load":
            assert keyword(call, "Loader") == "_StrictLoader"


def test_the_walk_finds_what_it_looks_for() -> None:
    found = {name for path in CODE for name, _ in calls(path)}
    assert {"torch.load", "yaml.load", "np.load", "subprocess.run"} <= found


DOCUMENTS = [ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md")), *(ROOT / "deploy").iterdir()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_tells_to_serve_all_the_world(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"bind_all|0\.0\.0\.0|--host[ =]|RAY_AUTH_MODE=disabled", text)


@pytest.mark.slow
def test_the_ray_of_a_search_asks_for_a_token_and_has_no_dashboard(ray_session: None) -> None:
    import ray
    from ray._raylet import AuthenticationMode, get_authentication_mode

    assert get_authentication_mode() == AuthenticationMode.TOKEN
    assert not ray._private.worker.get_dashboard_url()
    token = Path.home() / ".ray" / "auth_token"
    assert not token.exists() or token.stat().st_mode & 0o077 == 0
