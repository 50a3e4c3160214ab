"""The files for KubeRay, as its custom resource definitions and Ray's autoscaler read them.

The definitions themselves are 1 MB each and KubeRay's. With a folder `kuberay` under RAYLINGVO_TEST_DATA that has them
(ray.io_rayclusters.yaml, ray.io_rayjobs.yaml) the files are checked against them. In any case they are checked against
the fields below: those of KubeRay 1.7's API reference, and of Kubernetes' own, that these files may use.
"""

from __future__ import annotations

import copy
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as autoscaling

from raylingvo import config, registry
from raylingvo.cli_submit import joining

FOLDER = Path(__file__).parents[2] / "clusters" / "kuberay"
CLUSTERS = ("raycluster-gpu.yaml", "raycluster-tpu.yaml", "rayjob.yaml")


def of(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def many(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def by_name(value: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": value}


TEXT, WHOLE, TRUTH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|[KMGTP]i?)?$"}
RESOURCES = of({"requests": by_name(QUANTITY), "limits": by_name(QUANTITY)})
CONTAINER = of(
    {
        "name": TEXT,
        "image": TEXT,
        "env": many(of({"name": TEXT, "value": TEXT}, "name")),
        "resources": RESOURCES,
        "ports": many(of({"name": {"type": "string", "maxLength": 15}, "containerPort": WHOLE}, "containerPort")),
        "volumeMounts": many(of({"name": TEXT, "mountPath": TEXT, "readOnly": TRUTH}, "name", "mountPath")),
    },
    "name",
)
POD = of(
    {
        "metadata": of({"labels": by_name(TEXT), "annotations": by_name(TEXT)}),
        "spec": of(
            {
                "containers": {**many(CONTAINER), "minItems": 1},
                "nodeSelector": by_name(TEXT),
                "restartPolicy": one_of("Always", "OnFailure", "Never"),
                "terminationGracePeriodSeconds": WHOLE,
                "tolerations": many(
                    of(
                        {
                            "key": TEXT,
                            "operator": one_of("Exists", "Equal"),
                            "value": TEXT,
                            "effect": one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
                        }
                    )
                ),
                "volumes": many(
                    of(
                        {
                            "name": TEXT,
                            "persistentVolumeClaim": of({"claimName": TEXT}, "claimName"),
                            "emptyDir": of({"medium": one_of("", "Memory"), "sizeLimit": QUANTITY}),
                        },
                        "name",
                    )
                ),
            },
            "containers",
        ),
    }
)
GROUP = {"resources": by_name(TEXT), "labels": by_name(TEXT), "rayStartParams": by_name(TEXT), "template": POD}
CLUSTER_SPEC = of(
    {
        "rayVersion": TEXT,
        "enableInTreeAutoscaling": TRUTH,
        "autoscalerOptions": of(
            {
                "idleTimeoutSeconds": WHOLE,
                "upscalingMode": one_of("Default", "Aggressive", "Conservative"),
                "version": one_of("v1", "v2"),
                "resources": RESOURCES,
            }
        ),
        "authOptions": of({"mode": one_of("disabled", "token"), "secretName": TEXT}),
        "headGroupSpec": of(
            {**GROUP, "serviceType": one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")}, "template"
        ),
        "workerGroupSpecs": many(
            of(
                {
                    **GROUP,
                    "groupName": TEXT,
                    "replicas": WHOLE,
                    "minReplicas": WHOLE,
                    "maxReplicas": WHOLE,
                    "numOfHosts": WHOLE,
                    "idleTimeoutSeconds": WHOLE,
                },
                "groupName",
                "minReplicas",
                "maxReplicas",
                "template",
            )
        ),
    },
    "headGroupSpec",
)
JOB_SPEC = of(
    {
        "entrypoint": TEXT,
        "backoffLimit": WHOLE,
        "shutdownAfterJobFinishes": TRUTH,
        "ttlSecondsAfterFinished": WHOLE,
        "submissionMode": one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        "submitterConfig": of({"backoffLimit": WHOLE}),
        "submitterPodTemplate": POD,
        "rayClusterSpec": CLUSTER_SPEC,
    }
)
PEERS = many(
    of(
        {
            "podSelector": of({"matchLabels": by_name(TEXT), "matchExpressions": {"type": "array"}}),
            "namespaceSelector": {"type": "object"},
        }
    )
)
SPECS = {
    ("ray.io/v1", "RayCluster"): CLUSTER_SPEC,
    ("ray.io/v1", "RayJob"): JOB_SPEC,
    ("networking.k8s.io/v1", "NetworkPolicy"): of(
        {
            "podSelector": of({"matchLabels": by_name(TEXT)}),
            "policyTypes": many(one_of("Ingress", "Egress")),
            "ingress": many(of({"from": PEERS, "ports": many(of({"port": WHOLE, "protocol": TEXT}))})),
        },
        "podSelector",
    ),
    ("v1", "PersistentVolumeClaim"): of(
        {
            "accessModes": many(one_of("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany")),
            "storageClassName": TEXT,
            "resources": RESOURCES,
        }
    ),
}


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def cluster_spec(name: str) -> dict[str, Any]:
    (resource,) = read(name)
    return resource["spec"].get("rayClusterSpec", resource["spec"])


def check(resource: dict[str, Any]) -> None:
    spec = SPECS[resource["apiVersion"], resource["kind"]]
    metadata = of({"name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}}, "name")
    schema = of({"apiVersion": TEXT, "kind": TEXT, "metadata": metadata, "spec": spec}, "metadata", "spec")
    jsonschema.validate(resource, schema)


@pytest.mark.parametrize("name", [path.name for path in sorted(FOLDER.glob("*.yaml"))])
def test_its_fields_are_those_of_the_definitions(name: str) -> None:
    for resource in read(name):
        check(resource)


def test_a_misspelt_field_would_be_found() -> None:
    (resource,) = read("raycluster-gpu.yaml")
    for path, right, wrong in (
        (("spec",), "authOptions", "authOption"),
        (("spec", "workerGroupSpecs", 0), "maxReplicas", "maxReplica"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0), "volumeMounts", "volumesMounts"),
    ):
        broken = copy.deepcopy(resource)
        place: Any = broken
        for key in path:
            place = place[key]
        place[wrong] = place.pop(right)
        with pytest.raises(jsonschema.ValidationError):
            check(broken)


@pytest.mark.data
@pytest.mark.parametrize("name", CLUSTERS)
def test_kuberays_own_definitions_take_it(test_data: Path, name: str) -> None:
    (resource,) = read(name)
    path = test_data / "kuberay" / f"ray.io_{resource['kind'].lower()}s.yaml"
    if not path.exists():
        pytest.skip("KubeRay's definitions are not among the test data")
    definition = yaml.safe_load(path.read_text())
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(resource, schema)


def closed(schema: Any) -> Any:
    """As Kubernetes validates strictly: what is not named is refused."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items() if key != "default"}
    if schema.pop("x-kubernetes-int-or-string", False):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.mark.parametrize("name", CLUSTERS)
def test_rays_autoscaler_knows_what_each_group_has(name: str) -> None:
    derived = autoscaling({"metadata": {"name": "cluster", "namespace": "default"}, "spec": cluster_spec(name)})
    nodes = derived["available_node_types"]
    head = nodes.pop("headgroup")
    assert head["resources"]["stays"] > 0
    ((worker_name, worker),) = nodes.items()
    assert "stays" not in worker["resources"]
    if worker_name == "gpu":
        assert worker["resources"]["GPU"] == 1
        assert worker["min_workers"] == 0
    else:
        assert worker["resources"] | {"TPU": 4, "TPU-v6e-16-head": 1} == worker["resources"]
        assert (worker["min_workers"], worker["max_workers"]) == (0, 4)  # one slice, whole


def test_the_hosts_of_a_slice_have_all_its_chips() -> None:
    (group,) = cluster_spec("raycluster-tpu.yaml")["workerGroupSpecs"]
    chips = 1
    for side in group["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    (container,) = group["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["google.com/tpu"]) * group["numOfHosts"] == chips
    text = (FOLDER / "raycluster-tpu.yaml").read_text()
    assert f"resources.hosts={group['numOfHosts']}" in text


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_token_is_asked_for_and_nothing_listens_outside(name: str) -> None:
    spec = cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    (policy, _) = read("shared.yaml")
    labels = policy["spec"]["podSelector"]["matchLabels"]
    pods = [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    (resource,) = read(name)
    pods += [resource["spec"]["submitterPodTemplate"]] if resource["kind"] == "RayJob" else []
    assert all(pod["metadata"]["labels"] == labels for pod in pods)


def chosen(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", ())
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        {"In": labels.get(rule["key"]) in rule["values"]}[rule["operator"]] for rule in expressions
    )


def admitted(namespace: dict[str, str] | None, pod: dict[str, str], port: int) -> bool:
    """Whether the policy admits a pod to a port. namespace: its labels; None: it is that of the policy."""
    (policy, _) = read("shared.yaml")

    def comes_from(peer: dict[str, Any]) -> bool:
        where = (
            namespace is None if "namespaceSelector" not in peer else chosen(peer["namespaceSelector"], namespace or {})
        )
        return where and chosen(peer.get("podSelector", {}), pod)

    return any(
        any(map(comes_from, rule["from"]))
        and port in [allowed["port"] for allowed in rule.get("ports", [{"port": port}])]
        for rule in policy["spec"]["ingress"]
    )


def test_who_is_admitted_to_what() -> None:
    metrics, dashboard, gcs = 8080, 8265, 6379

    def open_to(namespace: dict[str, str] | None, pod: dict[str, str]) -> set[int]:
        return {port for port in (metrics, dashboard, gcs) if admitted(namespace, pod, port)}

    ours, operator = {"app": "raylingvo"}, {"app.kubernetes.io/name": "kuberay-operator"}
    assert open_to(None, ours) == {metrics, dashboard, gcs}
    assert open_to({}, ours) == open_to(None, {"app": "another"}) == set()
    assert open_to({}, operator) == {dashboard}
    system, tunnel = {"kubernetes.io/metadata.name": "kube-system"}, {"k8s-app": "konnectivity-agent"}
    assert open_to(system, tunnel) == {dashboard}
    assert open_to(system, {"k8s-app": "kube-dns"}) == open_to({}, tunnel) == set()
    assert open_to({"raylingvo-metrics": "allowed"}, {"app": "prometheus"}) == {metrics}
    assert open_to({}, {"app": "prometheus"}) == set()


@pytest.mark.parametrize("name", CLUSTERS)
def test_pods_have_one_ray_and_one_disk(name: str) -> None:
    spec = cluster_spec(name)
    (base,) = re.findall(r"FROM rayproject/ray:(\S+)-py311", (FOLDER / "Dockerfile").read_text())
    assert spec["rayVersion"] == base
    (_, claim) = read("shared.yaml")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "emptyDir" not in volume]
        assert claims == [claim["metadata"]["name"]]
        environment = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
        assert environment["RAYLINGVO_DATA"].startswith("/mnt/raylingvo/")


def test_the_image_has_the_ray_that_is_tested() -> None:
    constraints = (FOLDER.parents[1] / "constraints.txt").read_text()
    (pinned,) = re.findall(r"^ray==(\S+)$", constraints, re.M)
    assert pinned == ray.__version__
    for path in FOLDER.parent.rglob("*"):
        if path.is_file():
            assert set(re.findall(r"rayproject/ray:([\d.]+)-", path.read_text())) <= {pinned}, path


def test_the_job_is_a_command_line_that_joins_its_cluster() -> None:
    (job,) = read("rayjob.yaml")
    python, m, package, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, m, package) == ("python", "-m", "raylingvo")
    assert joining(arguments) == arguments
    experiment = registry.get(arguments[arguments.index("auto") + 1])
    values = [value for option, value in itertools.pairwise(arguments) if option == "--set"]
    changed = config.override(experiment, config.parse_assignments(values))
    assert changed.resources.trainer.num_gpus == 1
    assert dict(changed.resources.store.custom) == {"stays": 1}
