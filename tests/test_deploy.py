"""The recipes of `deploy/`: what of them can be judged without a cluster, and the SLURM script run with a real Ray."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
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
