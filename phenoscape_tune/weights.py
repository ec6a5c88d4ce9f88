"""Weights from elsewhere: a file of them made to fit a backbone, or timm's own from the hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phenoscape_tune.errors import UserError
from phenoscape_tune.files import NO_SEAL, seal_fault
from phenoscape_tune.spectral_stem import PREFIX, spectral_stem_state, stem_shape

HUB_SECONDS = 5  # the hub's client by itself tries for most of a minute
# Where a training script keeps the weights among other things, in timm's order.
_NESTS = ("state_dict_ema", "model_ema", "state_dict", "model")
_WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and DistributedDataParallel
_HEADS = ("fc", "head", "heads", "head_dist", "classifier", "pre_logits")
_LISTED = 3
NORMALISATION = "normalisation"  # the metadata key of our own safetensors files

# torchvision's VisionTransformer in timm's names, which has the same layers.
_TORCHVISION_VIT = (
    ("encoder.layers.encoder_layer_", "blocks."),
    (".self_attention.in_proj_", ".attn.qkv."),
    (".self_attention.out_proj.", ".attn.proj."),
    (".mlp.linear_1.", ".mlp.fc1."),
    (".mlp.linear_2.", ".mlp.fc2."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.3.", ".mlp.fc2."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    ("encoder.ln.", "norm."),
    ("encoder.pos_embedding", "pos_embed"),
    ("class_token", "cls_token"),
    ("conv_proj.", "patch_embed.proj."),
)


@dataclass(frozen=True)
class WeightsFile:
    """The weights that a file holds, in timm's names.

    Attributes:
        path: of the file.
        state: of the backbone, perhaps with a classifier.
        mean, std: per channel, by which its images were normalised; None where the file does not say.
        backbone: its name; None where the file does not say.
        spectral_stem: the state of the stem before the backbone; None where there is none.
    """

    path: Path
    state: dict[str, Tensor]
    mean: list[float] | None = None
    std: list[float] | None = None
    backbone: str | None = None
    spectral_stem: dict[str, Tensor] | None = None

    @property
    def has_small_stem(self) -> bool:
        """Whether the first convolution may be the 3x3 one of `stem: small`: as wide as that, with no other names."""
        return tuple(self.state.get("conv1.weight", torch.empty(0)).shape[2:]) == (3, 3)


def read_weights(path: Path) -> WeightsFile:
    """Read a state dict (torch file or safetensors) or one of our own checkpoints; never executes what is in it.

    Raises UserError for a file that is missing, or is not weights alone.
    """
    if not path.is_file():
        raise UserError(f"weights: {path}: no such file; give a file, DEFAULT or null")
    told: Mapping[str, Any] = {}
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                content: Any = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                told = json.loads((file.metadata() or {}).get(NORMALISATION, "{}"))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"weights: {path}: is not a file of weights alone ({type(error).__name__}); "
            "save a state dict with torch.save or as safetensors"
        ) from error
    state, config = _unwrap(content)
    if isinstance(content, dict) and {"format", "optimizer", "history"} <= set(content):  # one of our own checkpoints
        with path.open("rb") as opened:
            if (fault := seal_fault(opened)) == NO_SEAL and content["format"] == 1:
                raise UserError(
                    f"weights: {path}: is of an earlier version of this project (format 1), which wrote no checksum; "
                    "give a checkpoint of this one"
                )
            if fault:
                raise UserError(f"weights: {path}: is damaged ({fault}); give another checkpoint of that run")
    if not state:
        raise UserError(f"weights: {path}: holds no tensors by name; save a model's state_dict()")
    own = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    if own and {"mean", "std"} <= set(state):  # one of our own checkpoints
        told = {"mean": state["mean"].flatten().tolist(), "std": state["std"].flatten().tolist()}
    body = own or {key: value for key, value in state.items() if not key.startswith(PREFIX)}
    return WeightsFile(
        path,
        _timm_names(body),
        told.get("mean"),
        told.get("std"),
        config.get("backbone") if own else None,
        spectral_stem_state(state),
    )


def _unwrap(content: Any) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The tensors by name, and the configuration beside them, where there is one."""
    if not isinstance(content, Mapping):
        return {}, {}
    config = content.get("config")
    nested = next((content[key] for key in _NESTS if isinstance(content.get(key), Mapping)), content)
    state = {}
    for key, value in nested.items():
        for wrapper in (*_WRAPPERS, *_WRAPPERS):  # in either order
            key = str(key).removeprefix(wrapper)
        if isinstance(value, Tensor):
            state[key] = value
    return state, config if isinstance(config, Mapping) else {}


def _timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if "encoder.pos_embedding" not in state:
        return state
    renamed = {}
    for key, value in state.items():
        for theirs, timms in _TORCHVISION_VIT:
            key = key.replace(theirs, timms)
        renamed[key.replace("qkv._", "qkv.")] = value
    return renamed


def fit_weights(
    file: WeightsFile,
    backbone: nn.Module,
    name: str,
    *,
    own_stem: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Tensor]:
    """The file's tensors as `backbone.load_state_dict` takes them, all that the backbone has.

    A first convolution made for RGB is adapted to the backbone's channels (timm's `adapt_input_conv`); position
    embeddings of another input size are resampled (timm's filter of that kind of model). A classifier is left out.

    Args:
        name: the backbone's, for the message.
        own_stem: keep the backbone's first convolution where the file's is of another kind.
        say: gets a line where the first convolution was adapted.

    Raises UserError that names what differs, where something does.
    """
    known = backbone.state_dict()
    kept = {key: value for key, value in known.items() if own_stem and key.split(".")[0] == "conv1"}
    heads = {*_HEADS, *_classifiers(backbone)}

    def prepare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        body = {k: v for k, v in state.items() if k in known or k.rsplit(".", 1)[0].split(".")[0] not in heads}
        if own_stem:
            body = {key: value for key, value in body.items() if key.split(".")[0] != "conv1"}
        return kept | {key: _adapt_channels(value, known.get(key)) for key, value in body.items()}

    sources: list[Mapping[str, Tensor]] = [file.state]
    if any(_differences(prepare(file.state), known)):
        sources += _filtered(file.state, backbone)
    source = min(sources, key=lambda state: sum(map(len, _differences(prepare(state), known))))
    best = prepare(source)
    if any(_differences(best, known)):
        raise UserError(f"weights: {file.path}: does not fit backbone '{name}': {_tell(best, known, file, name)}")
    adapted = [key for key in best if key in source and source[key].shape != best[key].shape]
    if adapted:
        names = [key.removesuffix(".weight") for key in adapted]
        say(tell_adapted(names, source[adapted[0]].shape[1], best[adapted[0]].shape[1]))
    return best


def tell_adapted(names: Sequence[str], there: int, here: int) -> str:
    """A line that says what timm's `adapt_input_conv` made of a first convolution for RGB."""
    how = "its filters summed" if here == 1 else f"its filters repeated and scaled by {there}/{here}, as timm does"
    return f"weights: first convolution ({', '.join(names)}) adapted from {there} to {here} channels: {how}"


def _classifiers(backbone: nn.Module) -> list[str]:
    told = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    return [told] if isinstance(told, str) else list(told)


def _adapt_channels(value: Tensor, own: Tensor | None) -> Tensor:
    """A convolution of RGB images made one of as many channels as the backbone's own."""
    from timm.models import adapt_input_conv

    if own is None or own.ndim != 4 or value.ndim != 4 or value.shape[1] != 3 or own.shape[1] == 3:
        return value
    if (own.shape[0], *own.shape[2:]) != (value.shape[0], *value.shape[2:]):
        return value
    return adapt_input_conv(own.shape[1], value)


def _filtered(state: Mapping[str, Tensor], backbone: nn.Module) -> list[dict[str, Tensor]]:
    """The state as timm's filter of the backbone's kind turns it: resampled, renamed; empty where there is none."""
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return []
    # Some filters know timm's own names by the classifier, which a file of features has not.
    heads = {f"{classifier}.weight": torch.empty(0) for classifier in _classifiers(backbone)}
    results = []
    for whole in (dict(state), heads | dict(state)):
        with suppress(Exception):  # what the filter cannot read is told as what differs
            results.append({k: v for k, v in convert(whole, backbone).items() if isinstance(v, Tensor)})
    return results


def _differences(state: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Names that the state lacks, that have another shape in it, and that it has beyond the known ones."""
    # A count of batches, which some savers leave out, changes nothing in a network that is evaluated or goes on.
    missing = [key for key in known if key not in state and not key.endswith("num_batches_tracked")]
    shapes = [key for key in known if key in state and known[key].shape != state[key].shape]
    return missing, shapes, [key for key in state if key not in known]


def _tell(state: Mapping[str, Tensor], known: Mapping[str, Tensor], file: WeightsFile, name: str) -> str:
    missing, shapes, others = _differences(state, known)
    sides = [f"{key} is {_shape(state[key])} there and {_shape(known[key])} here" for key in shapes]
    listed = (
        (missing, missing, f"of {len(known)} tensors are missing"),
        (shapes, sides, "have another shape"),
        (others, others, "belong to another network"),
    )
    told = [
        f"{len(names)} {what} ({', '.join(lines[:_LISTED])}{', ...' if len(lines) > _LISTED else ''})"
        for names, lines, what in listed
        if names
    ]
    if file.backbone is not None and file.backbone != name:
        return f"{'; '.join(told)}; it is a checkpoint of '{file.backbone}': set backbone={file.backbone}"
    if file.spectral_stem is not None and len(shapes) == 1 and not missing and not others:
        width = stem_shape(file.spectral_stem)[1]
        return f"{told[0]}; it stands behind a spectral stem: set spectral_stem={width}"
    if len(shapes) == 1 and not missing and not others and _differ_in_channels(state[shapes[0]], known[shapes[0]]):
        there, here = state[shapes[0]].shape[1], known[shapes[0]].shape[1]
        return (
            f"it was trained on {there} channels, and here it is given {here} ({sides[0]}); choose the same channels "
            "as there, give weights of 3 channels, which are adapted to any number, or set weights=null"
        )
    return f"{'; '.join(told)}; give a file for this backbone, or set backbone (and input_size) to the file's"


def _differ_in_channels(there: Tensor, here: Tensor) -> bool:
    """Whether two weights of convolutions differ in the channels they take, and in nothing else."""
    return there.ndim == here.ndim == 4 and (there[:, 0].shape == here[:, 0].shape)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


@contextmanager
def impatient_hub() -> Iterator[None]:
    """Within, a hub that does not answer at once is taken for one out of reach: what is cached still loads."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    from huggingface_hub.utils import get_session

    try:
        get_session().head(address, timeout=HUB_SECONDS)  # by the client's own way, which knows proxies
    except Exception:
        return False
    return True
