"""The parts of published schemas that the files in launch/ use, without what they do not use.

Every object is closed: a field that is misspelled, or that the schema lacks, is an error.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
NAME: Schema = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
COUNT: Schema = {"type": "integer", "minimum": 1}
# A number written as text, with a unit or none.
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(m|Ki|Mi|Gi|Ti)?$"}


def closed(properties: Schema, *required: str) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


# batch/v1 and core/v1 of Kubernetes 1.31, where podFailurePolicy is stable.
EXIT_CODES = closed(
    {
        "containerName": TEXT,
        "operator": {"enum": ["In", "NotIn"]},
        "values": listed({"type": "integer", "minimum": 1, "maximum": 255}),  # 0 is no failure
    },
    "operator",
    "values",
)
POD_CONDITION = closed({"type": TEXT, "status": {"enum": ["True", "False", "Unknown"]}}, "type")
FAILURE_RULE = {
    **closed(
        {
            "action": {"enum": ["FailJob", "FailIndex", "Ignore", "Count"]},
            "onExitCodes": EXIT_CODES,
            "onPodConditions": listed(POD_CONDITION),
        },
        "action",
    ),
    "oneOf": [{"required": ["onExitCodes"]}, {"required": ["onPodConditions"]}],
}
CONTAINER = closed(
    {
        "name": NAME,
        "image": TEXT,
        "securityContext": closed(
            {
                "allowPrivilegeEscalation": {"type": "boolean"},
                "capabilities": closed({"drop": listed(TEXT)}),
            }
        ),
        "volumeMounts": listed(closed({"name": NAME, "mountPath": TEXT}, "name", "mountPath")),
    },
    "name",
)
POD = closed(
    {
        "restartPolicy": {"const": "Never"},  # required by a podFailurePolicy
        "terminationGracePeriodSeconds": COUNT,
        "automountServiceAccountToken": {"type": "boolean"},
        "securityContext": closed(
            {
                "runAsNonRoot": {"type": "boolean"},
                "runAsUser": COUNT,
                "fsGroup": COUNT,
                "seccompProfile": closed({"type": {"enum": ["RuntimeDefault"]}}, "type"),
            }
        ),
        "containers": listed(CONTAINER),
        "volumes": listed(
            closed({"name": NAME, "persistentVolumeClaim": closed({"claimName": NAME})}, "name")
        ),
    },
    "containers",
)
JOB = closed(
    {
        "backoffLimit": {"type": "integer", "minimum": 0},
        "podFailurePolicy": closed({"rules": {**listed(FAILURE_RULE), "maxItems": 20}}, "rules"),
        "template": closed({"spec": POD}, "spec"),
    },
    "template",
)

# kubeflow/trainer 2.4: pkg/apis/trainer/v1alpha1/{trainjob,trainingruntime}_types.go, and the
# JobSet in a runtime. 2.2 took numProcPerNode and elasticPolicy out of `torch`.
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}
REPLICATED_JOB = closed(
    {
        "name": {**NAME, "maxLength": 20},
        "template": closed({"metadata": closed({"labels": LABELS}), "spec": JOB}, "spec"),
    },
    "name",
    "template",
)
TRAINING_RUNTIME = closed(
    {
        "apiVersion": {"const": "trainer.kubeflow.org/v1alpha1"},
        "kind": {"const": "TrainingRuntime"},
        "metadata": closed({"name": NAME}, "name"),
        "spec": closed(
            {
                "mlPolicy": closed({"numNodes": COUNT, "torch": closed({})}),
                "template": closed({"spec": closed({"replicatedJobs": listed(REPLICATED_JOB)})}),
            }
        ),
    },
    *("apiVersion", "kind", "metadata", "spec"),
)
RESOURCES: Schema = {"type": "object", "additionalProperties": QUANTITY}
TRAIN_JOB = closed(
    {
        "apiVersion": {"const": "trainer.kubeflow.org/v1alpha1"},
        "kind": {"const": "TrainJob"},
        "metadata": closed({"name": NAME}, "name"),
        "spec": closed(
            {
                "runtimeRef": closed(
                    {
                        "apiGroup": {"const": "trainer.kubeflow.org"},
                        "kind": {"enum": ["TrainingRuntime", "ClusterTrainingRuntime"]},
                        "name": NAME,
                    },
                    "name",
                ),
                "trainer": closed(
                    {
                        "image": {**TEXT, "maxLength": 500},
                        "command": listed(TEXT),
                        "args": listed(TEXT),
                        "numNodes": COUNT,
                        "numProcPerNode": COUNT,
                        "resourcesPerNode": closed({"requests": RESOURCES, "limits": RESOURCES}),
                    }
                ),
            },
            "runtimeRef",
        ),
    },
    *("apiVersion", "kind", "metadata", "spec"),
)

# skypilot-org/skypilot: sky/utils/schemas.py, get_task_schema and get_resources_schema, as of
# 2026-11. Its JSON schema leaves file_mounts open; these are the fields of get_storage_schema.
EXIT_CODE: Schema = {"type": "integer", "minimum": 0, "maximum": 255}
SKYPILOT_TASK = closed(
    {
        "name": {"type": "string"},
        "workdir": {"type": "string"},
        "num_nodes": {"type": "integer"},
        "resources": closed(
            {
                "accelerators": {"type": "string"},
                "cpus": {"type": ["string", "number"]},
                "memory": {"type": ["string", "number"]},
                "use_spot": {"type": "boolean"},
                "job_recovery": closed(
                    {
                        "strategy": {"type": ["string", "null"]},
                        "max_restarts_on_errors": {"type": "integer", "minimum": 0},
                        "recover_on_exit_codes": {"type": "array", "items": EXIT_CODE},
                    }
                ),
            }
        ),
        "envs": {
            "type": "object",
            "patternProperties": {"^[a-zA-Z_][a-zA-Z0-9_]*$": {"type": ["string", "null"]}},
            "additionalProperties": False,
        },
        "file_mounts": {
            "type": "object",
            "additionalProperties": closed(
                {
                    "name": {"type": "string"},
                    "source": {"type": "string"},
                    "store": {"type": "string"},
                    "mode": {"enum": ["MOUNT", "COPY", "MOUNT_CACHED"]},
                }
            ),
        },
        "setup": {"type": "string"},
        "run": {"type": "string"},
    }
)
