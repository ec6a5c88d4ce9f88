"""Every command of the documents runs here, or it says what it needs, or another test that runs it is named.

A command of `scripts/` runs as it stands, in a folder laid out as the documents take for granted, with small sizes.
Where that takes too long it is only planned, or read by the command's own parser, and HELD names the test that runs the
same. A line of a shell block whose comment says `needs ...` is marked for its reader. A command that is none of these
fails the test.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import HISTORY, PROGRAMS, ROOT, SHELL, Command, blocks, commands, pages

from phenoscape_tune.config import build_config
from phenoscape_tune.search.space import build_space
from phenoscape_tune.yaml_file import load_mapping

# What the documents leave to the reader, and what stands for it here.
PLACES = {"FILE": "docs/config.yaml"}
# Small sizes, appended to a command as its reader could do.
NETWORK = [
    *("backbone=test_resnet.r160_in1k", "stem=standard", "input_size=32", "batch_size=8", "projection_dim=16"),
    *("spectral_stem=null", "num_workers=1", "accelerator=cpu", "max_epochs=2"),
]
SMALL = {
    "tune": ["--trials", "3", "--max-epochs", "1", "--no-confirm", "--concurrent", "1", *NETWORK],
    "train": NETWORK,
    "check_data": ["input_size=32"],
}
# The command that makes what others read; it runs before them.
MAKES = {
    "outputs/lr_temp": "python scripts/tune.py --space lr_temp.yaml data_dir=path/to/birds",
    "outputs/lr_temp/best": "python scripts/train.py --config outputs/lr_temp/best.yaml",
}
# What does not run here, by pattern: the test that runs it, or why none does.
HELD = {
    # Long: another test makes the same search, or starts what this one asks for.
    r"python scripts/tune.py --doctor.*": "tests/cli/test_doctor.py::test_the_command_finds_this_machine_well",
    r"python scripts/tune.py .*spectral.yaml .*": "tests/cli/test_tune.py::test_a_search_compares_all_bands",
    r"python scripts/tune.py --space augmentation.yaml .*": "tests/cli/test_tune.py::test_a_search_leaves",
    r"python scripts/tune.py .* storage=s3:.*": "tests/faults/test_remote_storage.py::test_a_search_on_s3_goes_on",
    r"python scripts/tune.py --space full.yaml .*": "ten minutes; its plan is made here",
    r"python scripts/tune.py --space docs/example/staged_cifar.yaml .*": (
        "tests/test_docs.py::test_the_command_of_the_tuning_guide_gives_the_configuration_in_its_report"
    ),
    r"python scripts/train.py --resume s3:.*": "tests/training/test_uploads.py::test_a_run_on_s3_goes_on",
    r"python scripts/train.py --config outputs/demo/best.yaml": "the same of another search runs here",
    r"python docs/write_configuration.py": "tests/test_docs.py::test_the_table_of_keys_is_current",
    r"make demo": "tests/test_wheel.py::test_the_demo_runs_from_any_folder",
    # Servers and viewers.
    r"tensorboard --logdir \S+": "tests/cli/test_tune.py::test_tensorboard_shows_every_trial_with_its_values",
    r"optuna-dashboard \S+": "tests/cli/test_tune.py::test_optuna_dashboard_opens_the_journal",
    r"tail -f outputs/\S+": "tests/training/test_monitor.py::test_rows_become_scalars_and_lines",
    r"git describe": "tests/test_versions.py::test_a_checkout_is_told_by_its_commit",
    # What CI does before and beside the tests.
    r"make (PYTHON=\S+ )?(setup|lint|types|test)": ".ci/run",
    r"source .venv/bin/activate": "of every environment that `make setup` makes",
    r"python3 -m venv \.venv": "`make setup` does the same",
    r"pip install .*": "`make setup` installs the same with uv; needs a package index",
    # Other machines.
    r"sbatch .*": "tests/test_deploy.py::test_a_job_near_its_time_limit_ends_in_order",
    r"scontrol requeue": "needs SLURM",
    r"ssh -L .*": "needs another machine",
}
# Targets of the Makefile that take long or need what CI has not; what they run is looked at, and each is told of in the
# documents as it is here.
LONG = {"test-quick", "test-oldest", "test-python312", "soak", "bench", "bench-replay", "bench-gpu"}
NEEDS = re.compile(r"\bneeds (a GPU|a cluster|SLURM|Kubernetes|a container engine|machines of your own)\b")


def told() -> Iterator[Command]:
    """Every command that the documents tell, in the order of the pages; the log's are of its days."""
    for page in pages():
        if page not in HISTORY:
            yield from commands(page)


def parts(command: str) -> list[str]:
    """The simple commands of a line of shell, without redirections and variables set in front."""
    words = re.sub(r">+ ?\S+", "", command.strip("()"))
    return [re.sub(r"^([A-Z_]+=\S+ )+", "", part.strip()) for part in words.split("&&")]


def held(part: str) -> str | None:
    """What holds a command that does not run here."""
    return next((how for pattern, how in HELD.items() if re.fullmatch(pattern, part)), None)


def script(part: str) -> str | None:
    """The name of the script of this project that a command runs."""
    match = re.match(r"python scripts/(\w+)\.py\b", part)
    return match[1] if match else None


RUN = sorted({p for c in told() if not NEEDS.search(c.comment) for p in parts(c.text) if script(p) and not held(p)})


# ---- what runs ----


@pytest.fixture(scope="module")
def place(birds: Path, cubes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the documents take it for granted: the checkout, and images where their commands look for them."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("scripts", "configs", "search_spaces", "deploy", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "path" / "to").mkdir(parents=True)
    for name, images in {"birds": birds, "new_birds": birds, "cubes": cubes}.items():
        (folder / "path" / "to" / name).symlink_to(images)
    return folder


@pytest.fixture(scope="module")
def done() -> dict[str, int]:
    """Exit codes of the commands that ran already: a search that several read is made once."""
    return {}


def run(part: str, done: dict[str, int]) -> int:
    """Run a command in the current folder, after what makes the results that it reads."""
    if part in done:
        return done[part]
    for result, maker in MAKES.items():
        if part != maker and re.search(rf"\b{result}(?![\w-])", part):
            assert run(maker, done) == 0, maker
    real = part
    for written, here in PLACES.items():
        real = real.replace(written, here)
    name = script(real)
    assert name is not None
    main = importlib.import_module(f"phenoscape_tune.cli.{name}").main
    arguments = shlex.split(real)[2:]
    small = [] if {"--resume", "--dry-run"} & set(arguments) else SMALL.get(name, [])
    done[part] = main([*arguments, *small])
    return done[part]


@pytest.mark.slow
@pytest.mark.parametrize("part", RUN)
def test_a_command_runs(
    part: str, place: Path, done: dict[str, int], ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("PHENOSCAPE_CACHE", str(place / "cache"))
    assert run(part, done) == 0, part
    for told_of in (command.comment for command in told() if command.text == part):
        for result in re.findall(r"\bin (outputs/[\w/-]+)", told_of):
            assert (place / result).is_dir(), f"{part}: made no {result}"


# ---- what does not run ----


def recipe(command: str) -> list[str]:
    """What make would run."""
    words = [*shlex.split(command), "--dry-run", "--no-print-directory"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def fault(command: Command) -> str | None:
    """Why a command of the documents counts as untested, if it does."""
    for part in parts(command.text):
        marked = bool(NEEDS.search(command.comment))
        if name := script(part):
            if not (ROOT / "scripts" / f"{name}.py").is_file():
                return f"{part}: there is no such script"
            command_line = importlib.import_module(f"phenoscape_tune.cli.{name}")
            arguments = shlex.split(part)[2:]
            asked = command_line.build_parser().parse_intermixed_args(arguments)  # an unknown flag ends the test
            planned = name == "tune" and "..." not in part and not (asked.resume or asked.doctor)
            # Space, configuration and keys are read too; nothing is started.
            if planned and command_line.main([*arguments, "--dry-run", "--quiet"]) != 0:
                return f"{part}: is refused"
            continue
        if marked or held(part):
            continue
        if part.startswith("make "):
            if part.split()[1] not in LONG:
                return f"{part}: name the target in LONG, with why nobody waits for it, or hold it otherwise"
        elif match := re.match(r"python benchmarks/(\w+)\.py(.*)", part):
            path = ROOT / "benchmarks" / f"{match[1]}.py"
            source = path.read_text(encoding="utf-8") if path.is_file() else ""
            missing = [flag for flag in re.findall(r"--[\w-]+", match[2]) if f'"{flag}"' not in source]
            if not source or missing:
                return f"{part}: {', '.join(missing) or 'there is no such script'}"
            if not (ROOT / "tests" / "benchmarks" / f"test_{match[1]}.py").is_file():
                return f"{part}: has no test in tests/benchmarks"
        elif part.startswith("ray "):
            _parse_as_ray(shlex.split(part)[1:])
        elif not part.startswith("umask "):
            return f"{part}: no test runs it"
    return None


def _parse_as_ray(words: list[str]) -> None:
    """Have Ray's own command line read a command, without running it. Raises what it raises."""
    from ray.scripts.scripts import cli

    # A name alone is a mention in a sentence; what the command would ask for besides is not missing there.
    cli.commands[words[0]].make_context(words[0], words[1:], resilient_parsing=len(words) == 1)


def test_no_command_is_untested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wrong = [f"{command.page}: {told}" for command in told_once() if (told := fault(command))]
    assert not wrong, "\n".join(
        [*wrong, "Have it run (test_commands.py), or say in its block what it `needs`, or name in HELD what runs it."]
    )


def told_once() -> list[Command]:
    return list({(c.page, c.text, c.comment): c for c in told()}.values())


@pytest.mark.parametrize(
    ("text", "comment", "passes"),
    [
        ("python scripts/tune.py --space lr.yaml", "", True),
        ("python scripts/gone.py", "", False),
        ("make coffee", "", False),
        ("python benchmarks/trial_start.py --gone", "", False),
        ("python benchmarks/learns.py", "", False),
        ("nvidia-smi -l", "", False),
        ("nvidia-smi -l", "needs a GPU", True),
        ("export X=1 && curl example.org", "", False),
    ],
)
def test_an_untested_command_is_found(text: str, comment: str, passes: bool) -> None:
    assert (fault(Command(text, "README.md", comment)) is None) == passes


def test_a_flag_that_is_none_is_found() -> None:
    with pytest.raises(SystemExit):
        fault(Command("python scripts/tune.py --spaces lr.yaml", "README.md"))


def test_what_is_said_to_hold_commands_does() -> None:
    texts = {part for command in told() for part in parts(command.text)}
    for pattern, how in HELD.items():
        assert any(re.fullmatch(pattern, text) for text in texts), f"no page has {pattern}"
        if how.startswith("tests/"):
            path, _, name = how.partition("::")
            assert f"def {name}" in (ROOT / path).read_text(encoding="utf-8"), how
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {"make setup", "make lint", "make types", "make test"} <= set(ci.splitlines())
    assert set(MAKES.values()) <= set(RUN)


def test_the_demo_is_a_search_that_can_be_planned() -> None:
    (line,) = (line for line in recipe("make demo") if "scripts/tune.py" in line)
    assert fault(Command(re.sub(r"^\S+python", "python", line), "Makefile")) is None


@pytest.mark.parametrize("target", sorted(LONG))
def test_what_a_long_target_runs_is_there(target: str) -> None:
    lines = [line for line in recipe(f"make {target}") if "python" in line]
    assert lines
    for line in lines:
        for file in re.findall(r"\b(?:benchmarks|tests|scripts)/[\w/]+\.py", line):
            assert (ROOT / file).is_file(), file
            if chosen := re.search(r"pytest .* -k (\w+)", line):
                assert re.search(rf"def test_\w*{chosen[1]}", (ROOT / file).read_text(encoding="utf-8")), line


# ---- blocks that are no commands ----

BLOCKS = [(page, language, text) for page in pages() if page not in HISTORY for language, text in blocks(page)]


def test_blocks_say_their_language() -> None:
    for page, language, text in BLOCKS:
        assert language in {*SHELL, "", "yaml", "python"}, f"{page}: a block of {language}"
        if not language:
            hidden = [line for line in text.splitlines() if (w := line.split(" "))[0] in PROGRAMS and any(w[1:2])]
            assert not hidden, f"{page}: commands in a block without a language: {hidden}"


@pytest.mark.parametrize("text", [text for _, language, text in BLOCKS if language == "yaml"])
def test_blocks_of_yaml_are_spaces_or_configurations(text: str, tmp_path: Path) -> None:
    (tmp_path / "block.yaml").write_text(text, encoding="utf-8")
    values = load_mapping(tmp_path / "block.yaml")
    (build_space if "parameters" in values else build_config)(values)


def test_blocks_of_python_import_what_there_is() -> None:
    """What they do at full length is run by tests/test_api.py in small."""
    for page, language, text in BLOCKS:
        for node in ast.walk(ast.parse(text)) if language == "python" else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("phenoscape_tune"):
                module = importlib.import_module(str(node.module))
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{page}: {node.module} has no {', '.join(missing)}"
