"""The recipes of `deploy/`: what of them can be judged without a cluster, and the SLURM script run with a real Ray."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from phenoscape_tune.cli.tune import build_parser

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
RAYJOB = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text(encoding="utf-8"))
CLUSTER = yaml.safe_load((DEPLOY / "cluster.yaml").read_text(encoding="utf-8"))
SBATCH = (DEPLOY / "slurm.sbatch").read_text(encoding="utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")

# Of the reference of KubeRay 1.6's resources; its schema itself is in no package that could be asked for it.
JOB_KEYS = {
    *("entrypoint", "backoffLimit", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
    *(
        "rayClusterSpec",
        "activeDeadlineSeconds",
        "submitterConfig",
        "submitterPodTemplate",
        "runtimeEnvYAML",
        "suspend",
    ),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "metadata", "jobId", "clusterSelector"),
}
CLUSTER_KEYS = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling"}
GROUP_KEYS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def tune_arguments(command: str) -> Any:
    """The arguments of the tune.py command inside of a longer one, as tune.py itself reads them."""
    words = shlex.split(command)
    start = next(index for index, word in enumerate(words) if word.endswith("scripts/tune.py"))
    return build_parser().parse_intermixed_args(words[start + 1 :])


def test_the_ray_job_is_built_of_the_operators_keys() -> None:
    assert (RAYJOB["apiVersion"], RAYJOB["kind"]) == ("ray.io/v1", "RayJob")
    spec = RAYJOB["spec"]
    assert set(spec) <= JOB_KEYS
    cluster = spec["rayClusterSpec"]
    assert set(cluster) <= CLUSTER_KEYS
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert set(group) <= GROUP_KEYS
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        # Ray and the batches of a loader live in it; the default of a container is 64 MB.
        assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert cluster["authOptions"] == {"mode": "token"}
    assert re.search(rf"^ray==({re.escape(cluster['rayVersion'])})$", (ROOT / "constraints.txt").read_text(), re.M)


def test_a_retried_ray_job_goes_on_where_it_was() -> None:
    assert RAYJOB["spec"]["backoffLimit"] > 0
    asked = tune_arguments(RAYJOB["spec"]["entrypoint"])
    assert asked.resume_or_start and asked.address == "auto"
    mounts = RAYJOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert any(asked.out.startswith(mount["mountPath"] + "/") for mount in mounts)


def test_the_cluster_of_ray_up_fits_rays_published_schema() -> None:
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(CLUSTER, schema)
    prepared = prepare_config(CLUSTER)
    validate_config(prepared)
    assert prepared["max_workers"] == len(CLUSTER["provider"]["worker_ips"])
    for commands in (CLUSTER["head_start_ray_commands"], CLUSTER["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]  # `ray start` asks for no token by itself


def test_the_command_that_ray_up_tells_is_one_that_tune_takes() -> None:
    text = (DEPLOY / "cluster.yaml").read_text(encoding="utf-8")
    told = re.search(r"python scripts/tune\.py (.*?)'", re.sub(r"\\\n#", "", text), re.S)
    assert told is not None
    assert tune_arguments(f"scripts/tune.py {told[1]}").resume_or_start


def test_the_container_has_what_it_copies_and_is_not_root() -> None:
    copied = [words.split()[1:-1] for words in re.findall(r"^(COPY .+)$", DOCKERFILE, re.M)]
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists(), name
        assert f"!{name}\n" in (ROOT / ".dockerignore").read_text(encoding="utf-8")
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.M) == ["1000:1000"]
    assert "--constraint constraints.txt '.[cluster]'" in DOCKERFILE
    image = re.search(r"-t (\S+)", DOCKERFILE)
    assert image is not None and image[1] in (DEPLOY / "rayjob.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_no_recipe_opens_a_port_to_all_or_goes_without_a_token(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for word in ("0.0.0.0", "bind_all", "RAY_AUTH_MODE=disabled", "privileged"):
        assert word not in text
    if path.suffix in (".sbatch", ".sh"):
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


# Of SLURM's own: srun runs the step, scontrol names the nodes and notes that the job is to be queued again.
SRUN = 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'
SCONTROL = 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" > "$REQUEUED"; fi\n'


def alone(command: list[str], probe: bool = False) -> list[str]:
    """The command where it sees no other process: Ray refuses a machine that has a Ray, and stops every Ray there."""
    flags = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    inner = "true" if probe else "mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && exec " + shlex.join(command)
    return ["unshare", *flags, "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "bash", "-c", inner]


@pytest.fixture
def job(tmp_path: Path) -> Any:
    """Starts the SLURM script as SLURM would, beside the tools of SLURM that it uses; ends what is left of it."""
    if shutil.which("unshare") is None or subprocess.run(alone([], probe=True), capture_output=True).returncode:
        pytest.skip("processes cannot be kept apart here (unshare), and `ray stop` would end the Ray of others")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (tools / name).chmod(0o755)
    started: list[subprocess.Popen[str]] = []

    def start(log: Path, *arguments: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(tmp_path),
            "REQUEUED": str(tmp_path / "requeued"),
            "SLURM_JOB_ID": str(os.getpid() % 10000),
            "SLURM_JOB_NODELIST": "node",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_ON_NODE": "2",
        }
        with log.open("w") as file:
            started.append(
                subprocess.Popen(
                    alone(["bash", str(DEPLOY / "slurm.sbatch"), *arguments]),
                    cwd=ROOT,
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def batch_script_of(process: subprocess.Popen[str]) -> int:
    """The id of the batch script, below the process that keeps it apart."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def wait_for(condition: Any, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_near_its_time_limit_ends_in_order_and_goes_on_when_it_is_started_again(
    job: Any, birds: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "search", tmp_path / "job.log"
    arguments = [
        *("--space", "lr.yaml", "--out", str(out), "--trials", "2", "--max-epochs", "30", "--no-confirm"),
        *("--seed", "0", f"data_dir={birds}", "backbone=test_resnet.r160_in1k", "input_size=32", "stem=standard"),
    ]
    first = job(log, *arguments)
    journal = out / "study.journal"
    wait_for(lambda: (journal.exists() and '"measured"' in journal.read_text()) or first.poll() is not None, 240, log)
    assert first.poll() is None, log.read_text()
    os.kill(batch_script_of(first), signal.SIGUSR1)
    wait_for(lambda: first.poll() is not None, 120, log)
    assert "queued again" in log.read_text() and "everything reported is kept" in log.read_text()
    assert first.returncode == 130
    assert (tmp_path / "requeued").read_text().startswith("requeue ")
    assert not (out / "summary.json").exists()

    again = job(log, *arguments)
    wait_for(lambda: again.poll() is not None, 300, log)
    assert again.returncode == 0, log.read_text()
    with (out / "leaderboard.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["trial"] for row in rows}) == len(rows) == 2
    assert {row["status"] for row in rows} <= {"completed", "pruned"}
