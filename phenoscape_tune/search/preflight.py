"""Asks every machine of a cluster, before the first trial, for what a trial needs there; tells all faults at once."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phenoscape_tune.search.cluster import Node  # first: it sets what Ray reads when it is imported

# isort: split
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.data.listing import files_of
from phenoscape_tune.data.packed import default_cache_dir
from phenoscape_tune.data.specimens import find_specimens
from phenoscape_tune.errors import UserError
from phenoscape_tune.training.gpus import Gpu, visible_gpus
from phenoscape_tune.versions import versions

SECONDS = 300.0  # for all machines to answer: the first import of a package, and a listing of the images
SEEN_SECONDS = 5.0  # for a file to be seen on another machine: network file systems are late by some
SKEW_SECONDS = 5.0
LITTLE_SPACE = 2**30  # bytes
# Their absence says nothing, their difference little: an image may be decoded differently in its last bit.
_TOLERATED = ("numpy", "pillow")

Answer = dict[str, Any]  # plain values: what machines of other versions can read


@dataclass(frozen=True)
class Findings:
    """What the machines answered: warnings, and the GPUs of those that run trials."""

    warnings: tuple[str, ...]
    cards: tuple[Gpu, ...]


def check_nodes(nodes: Sequence[Node], running: Sequence[str], config: TrainConfig, folder: Path) -> Findings:
    """Ask every machine, each in a task of its own that reserves nothing.

    Args:
        nodes: all that are alive; running: ids of those that trials will run on. What others lack is a warning.
        folder: the search's, which need not exist yet.

    Raises UserError with all faults, each with the machines that have it.
    """
    nearest = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".preflight-", dir=nearest) as meeting:
        nonce = os.urandom(16).hex()
        (Path(meeting) / "driver").write_text(nonce)
        question = {"meeting": meeting, "nonce": nonce, "config": config.to_mapping()}
        expected = describe_machine(config)
        answers = _ask(nodes, question)
        for node in nodes:
            answer = answers[node.id]
            if "nonce" in answer and not _seen(Path(meeting) / node.id, nonce):
                answer["faults"].append(
                    f"output folder: {folder}: what this machine writes there is not seen where the search was started"
                )
    faults, warnings = judge(nodes, running, expected, answers)
    if faults:
        raise UserError("\n".join(["not every machine of the cluster can run this search:", *faults]))
    cards = [Gpu(*card) for node in nodes if node.id in running for card in answers[node.id].get("cards", ())]
    return Findings(tuple(warnings), tuple(cards))


def judge(
    nodes: Sequence[Node], running: Sequence[str], expected: Answer, answers: Mapping[str, Answer]
) -> tuple[list[str], list[str]]:
    """Faults and warnings, each with the machines that have it, from what the driver's machine expects of each."""
    faults: dict[str, list[str]] = {}
    warnings: dict[str, list[str]] = {}
    for node in nodes:
        answer = answers[node.id]
        found = [*answer["faults"], *_differences(expected, answer)]
        for told in found:
            (faults if node.id in running else warnings).setdefault(told, []).append(node.name)
        for told in answer.get("warnings", ()):
            warnings.setdefault(told, []).append(node.name)
    return _by_machine(faults), _by_machine(warnings)


def _differences(expected: Answer, answer: Answer) -> list[str]:
    found = []
    known = answer.get("versions", {})
    for name, version in expected["versions"].items() if known else ():
        other = known.get(name)
        if other == version or name in _TOLERATED or (name == "source" and other is None):
            continue
        what = "git describe of phenoscape_tune" if name == "source" else name
        found.append(
            f"versions: {what} is {other or 'not installed'}, {version} where the search was started; install the same"
        )
    if "data" in answer and answer["data"] != expected["data"]:
        (files, _), (here, _) = answer["data"], expected["data"]
        found.append(
            f"data_dir: {expected['data_dir']}: holds other files there ({files:,} images, here {here:,}; names and "
            "sizes were compared); put the same images on every machine, or use a shared folder"
        )
    return found


def _by_machine(told: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    for line, names in told.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"node {', '.join(names[:3])}{more}: {line}")
    return lines


def _ask(nodes: Sequence[Node], question: Mapping[str, Any]) -> dict[str, Answer]:
    """Each machine's answer by its id; what kept one from answering is a fault of it."""
    asked = {
        _answer.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(question): node
        for node in nodes
    }
    answers: dict[str, Answer] = {}
    pending, deadline = list(asked), time.monotonic() + SECONDS
    while pending and (left := deadline - time.monotonic()) > 0:
        ready, pending = ray.wait(pending, timeout=left)
        for reference in ready:
            now, node = time.time(), asked[reference]
            try:
                answers[node.id] = ray.get(reference)
            except (RayError, RuntimeError) as error:
                answers[node.id] = {"faults": [_describe_error(error)]}
                continue
            skew = answers[node.id]["now"] - now
            if abs(skew) > SKEW_SECONDS:
                told = f"its clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}; run a time service (NTP)"
                answers[node.id]["warnings"].append(told)
    for reference in pending:
        ray.cancel(reference, force=True)
        answers[asked[reference].id] = {"faults": [f"did not answer within {SECONDS:g} s"]}
    return answers


def _describe_error(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    missing = [line.strip() for line in lines if "No module named" in line or "ImportError" in line]
    if missing:
        return (
            f"cannot import phenoscape_tune ({missing[-1]}); install it there in the same version, in the environment "
            "that Ray was started from. No code is sent to the machines"
        )
    return f"could not be asked: {type(error).__name__}: {lines[0] if lines else 'without a word'}"


@ray.remote(num_cpus=0, max_retries=0)
def _answer(question: Mapping[str, Any]) -> Answer:
    answer = examine_machine(question, ray.get_runtime_context().get_node_id())
    return {**answer, "now": time.time()}


def examine_machine(question: Mapping[str, Any], node: str) -> Answer:
    """What this machine has of what the question asks for; faults and warnings in words."""
    config = build_config(question["config"])
    faults: list[str] = []
    warnings: list[str] = []
    answer: Answer = {"faults": faults, "warnings": warnings}
    meeting, nonce = Path(question["meeting"]), question["nonce"]
    if not _seen(meeting / "driver", nonce):
        faults.append(
            f"output folder: {meeting.parent}: is not the folder of that name where the search was started; give --out "
            "a folder on a file system that all machines share"
        )
    else:
        try:
            (meeting / node).write_text(nonce)
            answer["nonce"] = True
            _warn_of_space(warnings, "output folder", meeting.parent)
        except OSError as error:
            faults.append(f"output folder: {meeting.parent}: cannot be written ({error.strerror or error})")
    try:
        answer |= describe_machine(config)
    except UserError as error:
        faults.append(str(error))
        answer["versions"] = versions()
    scratch = (Path(config.cache_dir) if config.cache_dir else default_cache_dir()).expanduser()
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=scratch):
            pass
        _warn_of_space(warnings, "scratch folder (cache_dir, $PHENOSCAPE_CACHE)", scratch)
    except OSError as error:
        faults.append(
            f"cache_dir: {scratch} cannot be written ({error.strerror or error}); set cache_dir, or $PHENOSCAPE_CACHE "
            "before `ray start` there, to a folder on a local disk"
        )
    return answer


def describe_machine(config: TrainConfig) -> Answer:
    """What must be the same on each machine, and its GPUs. Raises UserError where the images cannot be found."""
    assert config.data_dir is not None
    root = Path(config.data_dir)
    labels = None if config.labels is None else Path(config.labels)
    specimens = find_specimens(root, labels, config.group_by, config.modality)
    names = specimens.names
    digest = hashlib.sha256()
    for name in names:
        for file in files_of(root / name, specimens.modality):
            size = -1
            with suppress(OSError):
                size = file.stat().st_size
            digest.update(f"{name}\0{file.suffix}\0{size}\0".encode(errors="surrogateescape"))
    for path in (config.labels, None if config.weights == "DEFAULT" else config.weights):
        if path is not None:
            digest.update(_read(path))
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    return {
        "versions": versions(),
        "data": [len(names), digest.hexdigest()],
        "data_dir": config.data_dir,
        # Ray hides the GPUs from a task that reserves none.
        "cards": [(card.name, card.memory_gib) for card in visible_gpus(environment)],
    }


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _seen(path: Path, content: str) -> bool:
    deadline = time.monotonic() + SEEN_SECONDS
    while True:
        with suppress(OSError):
            if path.read_text() == content:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _warn_of_space(warnings: list[str], what: str, folder: Path) -> None:
    if (free := shutil.disk_usage(folder).free) < LITTLE_SPACE:
        warnings.append(f"{what}: {folder}: only {free / 2**20:,.0f} MiB are free")
