"""What the launcher asks for besides processes and devices.

accelerate's flags and its config file, which `accelerate config` writes into the user's home, reach
a process as variables. A request that would make another result is refused by name. One that would
only cost time, or change rounding, is off, and the run says so.
"""

from __future__ import annotations

import os

from seqclf.errors import UserError

# torchrun's options as variables, which Kubeflow Trainer gives each pod, and what they become
# where plain python starts the one process of a pod.
PODS = {
    "PET_NODE_RANK": "RANK",
    "PET_NNODES": "WORLD_SIZE",
    "PET_MASTER_ADDR": "MASTER_ADDR",
    "PET_MASTER_PORT": "MASTER_PORT",
}
YES = {"1", "true", "t", "yes", "y", "on"}
NO = {"0", "false", "f", "no", "n", "off"}
# Other ways to train than torch's DDP.
WAYS = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER", "TPU", "IPEX")
# Variables, the values that ask for nothing, and what seqclf has instead.
REFUSED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        {"1"},
        "train.batch_size counts all examples of a step, and train.micro_batch_size cuts a step "
        "into parts that fit into memory",
    ),
    "ACCELERATE_GRADIENT_CLIPPING": ({"none", "auto"}, "optim.clip is the largest norm"),
    "ACCELERATE_TORCH_DEVICE": (set[str](), "the setting `device` chooses the device"),
}
# Variables that seqclf, torch, accelerate, W&B and OpenMP read. CUDA_VISIBLE_DEVICES is none of
# them: empty, it asks for no GPU.
READ = {
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("CUBLAS_WORKSPACE_CONFIG", "GLOO_SOCKET_IFNAME", "COLUMNS", "NO_COLOR", "NETRC"),
}
FAMILIES = (
    *("ACCELERATE_", "TORCHELASTIC_", "WANDB_", "SLURM_", "OMP_", "GOMP_", "KMP_"),
    *("PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "TQDM_", "PET_"),
)


def forget_empty_variables() -> None:
    """Delete the empty ones of the variables that are read: empty means unset, but not to all."""
    for name in [name for name, text in os.environ.items() if not text]:
        if name in READ or name.startswith(FAMILIES):
            del os.environ[name]


def join_pods() -> None:
    """Take the place of this process among those of other pods, if no launcher has given it one.

    torchrun reads PET_NNODES and its like by itself. Under plain python they would be without
    effect: each pod would train alone. Raises UserError for what plain python cannot start.
    """
    if "RANK" in os.environ or os.environ.get("PET_NNODES", "1") == "1":
        return
    if os.environ.get("PET_NPROC_PER_NODE", "1") != "1":
        raise UserError(
            f"the variable PET_NPROC_PER_NODE is '{os.environ['PET_NPROC_PER_NODE']}', but plain "
            "python starts one process: start this with torchrun, or ask for one process in each "
            "pod (numProcPerNode: 1)"
        )
    missing = [name for name in PODS if name not in os.environ]
    if missing or not os.environ["PET_NNODES"].isdecimal():
        problem = f"{missing[0]} is missing" if missing else "it must be one number"
        raise UserError(
            f"the variable PET_NNODES is '{os.environ['PET_NNODES']}', but {problem}: start this "
            "with torchrun, or unset PET_NNODES"
        )
    os.environ |= {name: os.environ[pet] for pet, name in PODS.items()}
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def is_set(name: str) -> bool:
    """Read a switch of accelerate's. Raises UserError for a value that is neither yes nor no."""
    text = os.environ.get(name, "")
    if text and text.lower() not in YES | NO:
        raise UserError(f"the variable {name} is '{text}'; use true or false, or unset it")
    return text.lower() in YES


def check_launcher() -> list[tuple[str, str]]:
    """Return what the launcher asks for and does not get, each with its remedy.

    Raises UserError for a request that would make another result.
    """
    forget_empty_variables()
    for way in WAYS:
        # SageMaker's container is as any other without SageMaker's own way to distribute.
        is_plain = (
            way == "SAGEMAKER" and os.environ.get(f"ACCELERATE_{way}_DISTRIBUTED_TYPE") == "NO"
        )
        if is_set(f"ACCELERATE_USE_{way}") and not is_plain:
            raise UserError(
                f"the launcher asks for {way}; seqclf trains with DDP: remove it from the "
                "accelerate config (configs/accelerate/ has working ones), or unset "
                f"ACCELERATE_USE_{way}"
            )
    for name, (harmless, instead) in REFUSED.items():
        text = os.environ.get(name)
        if text is not None and text.lower() not in harmless:
            raise UserError(
                f"the launcher sets {name} to '{text}', which seqclf does not use: {instead}; "
                "remove it from the launcher's command and from the accelerate config, or unset "
                "the variable"
            )
    notes = []
    if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").upper()) != "NO":
        notes.append(
            (
                f"dynamo is off, though the launcher asks for {backend}: compiling makes no LSTM "
                "faster, and rounds otherwise",
                "for no such note: accelerate launch --dynamo_backend no, or take dynamo_config "
                "out of the accelerate config",
            )
        )
    if is_set("ACCELERATE_DEBUG_MODE"):
        notes.append(
            (
                "accelerate's debug mode is off, though the launcher asks for it: it sends pickles",
                "for no such note: take debug out of the accelerate config, or unset "
                "ACCELERATE_DEBUG_MODE",
            )
        )
    return notes
