"""Networks that take an image of any size and give logits of that size."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denseloss.contract import nearest
from denseloss.data.errors import InputError
from denseloss.data.transforms import MEAN, STD
from denseloss.tasks.segmentation.tiles import in_tiles, is_large
from denseloss.user_code import UserCodeError, is_user_code, load, said_by

# Small on purpose: two losses can be compared within minutes, also without a GPU. The first stages
# are narrow because most of the time goes there, at full size.
DYNUNET_FILTERS = (8, 16, 32, 64, 128, 128)

# The smallest side an architecture takes, where it is more than two of its own strides.
_SMALLEST_SIDE = {"pan": 128}
_SMP_STRIDE = 32
# Of a network of the user's own: what most need, that halve an image five times.
_USER_STRIDE = 32
_DPT_ENCODER = "tu-vit_base_patch16_224.augreg_in21k"


class Segmenter(nn.Module):
    """A network with the bookkeeping of sizes around it.

    Images are padded below and to the right, by repeating the border, until `network` takes them;
    what was predicted for the padding is cut off again. Logits that `network` gives at a smaller
    size, heads of deep supervision among them, keep their size: the loss brings them to the labels.
    Out of training an image that `tiles.is_large` goes through the network in tiles.

    Images come with ImageNet's mean and deviation. Where pretrained weights want other ones, the
    buffers `scale` and `shift` hold the way to those; they are 1 and 0 otherwise.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: nn.Module, *, num_outputs: int, divisor: int, smallest: int
    ) -> None:
        super().__init__()
        self.network = network
        self.num_outputs = num_outputs
        self.divisor = divisor
        self.smallest = smallest
        self.register_buffer("scale", torch.ones(3, 1, 1))
        self.register_buffer("shift", torch.zeros(3, 1, 1))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the logits, the largest first; only a network in training gives more than one."""
        if not self.training and is_large(image.shape[-2:]):
            return [in_tiles(self.whole, image, channels=self.num_outputs)]
        return self.whole(image)

    def whole(self, image: Tensor) -> list[Tensor]:
        """Return the same without tiles, however large the image is."""
        padded = self.padded(image)
        output = self.network(padded)
        outputs = [output] if isinstance(output, Tensor) else list(output)
        return [_cut(logits, padded.shape[-2:], image.shape[-2:]) for logits in outputs]

    def padded(self, image: Tensor) -> Tensor:
        """Return the image as `network` gets it."""
        down, across = (
            max(self.smallest, -(-n // self.divisor) * self.divisor) - n for n in image.shape[-2:]
        )
        image = image * self.scale + self.shift
        if down or across:
            image = F.pad(image, (0, across, 0, down), mode="replicate")
        return image

    def normalise_to(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Give `network` images of another mean and deviation, of intensities 0 to 1."""
        wanted_mean, wanted_std, mean_, std_ = (
            torch.tensor(list(values), dtype=torch.float64).view(3, 1, 1)
            for values in (mean, std, MEAN, STD)
        )
        self.scale.copy_(std_ / wanted_std)
        self.shift.copy_((mean_ - wanted_mean) / wanted_std)


class SupervisedDynUNet(nn.Module):
    """MONAI's DynUNet whose deep-supervision heads come at their own sizes, 1/2, 1/4, ...

    MONAI's own forward enlarges every head by nearest neighbour to the full size and stacks them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return the logits, in training followed by those of the heads."""
        network = self.network
        output = cast(Tensor, network.output_block(network.skip_layers(image)))  # type: ignore[operator]
        if not self.training:
            return output
        heads = cast(list[Tensor], network.heads)
        outputs = [output, *heads]
        # MONAI keeps the last heads; their graph would outlive the step, and forbid a deepcopy.
        heads[:] = [torch.empty(0)] * len(heads)
        return outputs


def build_model(spec: str, *, num_outputs: int, deep_supervision: bool = False) -> Segmenter:
    """Build a network from its name, with random weights.

    Args:
        spec: "dynunet"; or "smp:ARCH" or "smp:ARCH:ENCODER" for any architecture and encoder of
            segmentation-models-pytorch; or "file.py:name" or "package.module:name" of a callable
            that takes the numbers of input channels and of outputs and returns a Module.
        num_outputs: Channels of the logits.
        deep_supervision: Whether the network also predicts at smaller sizes in training.

    Returns:
        The network. It draws its weights from torch's generator: seed that before.

    Raises:
        InputError: The name is not known, what it needs is not installed, or the user's callable
            gives no network.
    """
    family, _, rest = spec.partition(":")
    if family == "dynunet" and not rest:
        return _dynunet(num_outputs=num_outputs, deep_supervision=deep_supervision)
    own = of_the_user(spec)
    if not own and (family != "smp" or not rest):
        raise InputError(
            f"--model {spec}: not a known model{_meant(spec, ['dynunet', 'smp'])}; "
            'use "dynunet", "smp:ARCH:ENCODER" such as smp:DeepLabV3Plus:resnet18, or file.py:name '
            "of your own"
        )
    if deep_supervision:
        raise InputError(f"--deep-supervision: {spec} has no such heads; use --model dynunet")
    if own:
        return _from_code(spec, num_outputs=num_outputs)
    arch, _, encoder = rest.partition(":")
    return _from_smp(arch, encoder=encoder, num_outputs=num_outputs)


def of_the_user(spec: str) -> bool:
    """Whether `--model` names code of the user's own."""
    return is_user_code(spec) and not spec.startswith("smp:")


def _meant(name: str, names: Iterable[str]) -> str:
    known = {item.lower(): item for item in names}
    near = nearest(name.lower(), known)
    return f" (did you mean {known[near]}?)" if near else ""


def _dynunet(*, num_outputs: int, deep_supervision: bool) -> Segmenter:
    from monai.networks.nets.dynunet import DynUNet

    depth = len(DYNUNET_FILTERS)
    network: nn.Module = DynUNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=num_outputs,
        kernel_size=[3] * depth,
        strides=[1] + [2] * (depth - 1),
        upsample_kernel_size=[2] * (depth - 1),
        filters=DYNUNET_FILTERS,
        deep_supervision=deep_supervision,
        deep_supr_num=3,
    )
    if deep_supervision:
        network = SupervisedDynUNet(network)
    divisor = 2 ** (depth - 1)
    # Instance norm needs more than one pixel at the bottleneck.
    return Segmenter(network, num_outputs=num_outputs, divisor=divisor, smallest=2 * divisor)


def _from_smp(arch: str, *, encoder: str, num_outputs: int) -> Segmenter:
    network = smp_network(arch, encoder, weights=None, num_outputs=num_outputs)
    smallest = _SMALLEST_SIDE.get(arch.lower(), 2 * _SMP_STRIDE)
    return Segmenter(network, num_outputs=num_outputs, divisor=_SMP_STRIDE, smallest=smallest)


def smp_network(arch: str, encoder: str, *, weights: str | None, num_outputs: int) -> nn.Module:
    """Build a network of segmentation-models-pytorch.

    Args:
        arch: The architecture, in any case.
        encoder: By default resnet18.
        weights: Of the encoder, None for random ones. What goes wrong with them raises whatever
            the libraries raise that fetch them.
        num_outputs: Channels of the logits.

    Raises:
        InputError: It is not known, or cannot be built.
    """
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise InputError(
            f'--model smp:{arch} needs segmentation-models-pytorch: pip install "denseloss[smp]"'
        ) from None

    known = {cls.__name__.lower(): cls for cls in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    cls = known.get(arch.lower())
    if cls is None:
        names = [item.__name__ for item in known.values()]
        raise InputError(
            f"--model smp:{arch}: no such architecture{_meant(arch, names)}; "
            f"there are {', '.join(names)}"
        )
    transformer = arch.lower() == "dpt"
    encoder = smp_encoder(arch, encoder)
    if not encoder.startswith("tu-") and encoder not in smp.encoders.encoders:
        raise InputError(
            f"--model smp:{arch}:{encoder}: no such encoder{_meant(encoder, smp.encoders.encoders)}"
        )
    # Without this, a vision transformer takes only images of the size it was made for.
    options: dict[str, Any] = {"dynamic_img_size": True} if transformer else {}
    options |= {"encoder_weights": weights, "in_channels": 3, "classes": num_outputs}
    if weights is not None:
        return cast(nn.Module, cls(encoder, **options))
    try:
        return cast(nn.Module, cls(encoder, **options))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--model smp:{arch}:{encoder} cannot be built: {reason}") from error


def smp_encoder(arch: str, encoder: str) -> str:
    """Return the encoder, the usual one where none is named."""
    return encoder or (_DPT_ENCODER if arch.lower() == "dpt" else "resnet18")


def load_encoder(network: Segmenter, spec: str, weights: str) -> tuple[str, ...]:
    """Load weights that come with segmentation-models-pytorch, and what images they want.

    Args:
        network: What `build_model` gave; the weights of its encoder are overwritten.
        spec: What it was made of.
        weights: Their name, such as "imagenet".

    Returns:
        What is to be said about them.

    Raises:
        InputError: There are no such weights, or they cannot be fetched.
    """
    family, _, rest = spec.partition(":")
    if family != "smp" or not rest:
        raise InputError(
            f"--weights {weights}: {spec} has no such weights, only smp:ARCH:ENCODER has; choose "
            "such a --model, or give --weights FILE"
        )
    arch, _, encoder = rest.partition(":")
    encoder = smp_encoder(arch, encoder)
    there = _weights_of(encoder)
    if weights not in there:
        raise InputError(
            f"--weights {weights}: {encoder} has {', '.join(there) or 'no pretrained weights'}; "
            "give one of these, another encoder, or --weights FILE"
        )
    from segmentation_models_pytorch.encoders import get_preprocessing_params

    try:
        with torch.random.fork_rng(devices=[]):
            # smp tells its encoders of timm apart by True.
            asked: Any = True if encoder.startswith("tu-") else weights
            loaded = smp_network(arch, encoder, weights=asked, num_outputs=1)
        wanted = get_preprocessing_params(encoder, pretrained=weights)
    except InputError:
        raise
    except Exception as error:  # of several libraries, for each way not to reach a file
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
        raise InputError(
            f"--weights {weights}: the weights of {encoder} cannot be fetched ({why}); connect "
            "this machine to huggingface.co once, which keeps them in HF_HOME, or fetch them "
            "elsewhere and give --weights FILE"
        ) from error
    state = cast(nn.Module, loaded.encoder).state_dict()
    cast(nn.Module, network.network.encoder).load_state_dict(state)
    return _normalised_as(network, encoder, wanted)


def _weights_of(encoder: str) -> list[str]:
    if encoder.startswith("tu-"):
        import timm

        return ["imagenet"] if timm.models.is_model_pretrained(encoder.removeprefix("tu-")) else []
    import segmentation_models_pytorch as smp

    return list(smp.encoders.encoders[encoder]["pretrained_settings"])


def _normalised_as(network: Segmenter, encoder: str, wanted: Mapping[str, Any]) -> tuple[str, ...]:
    mean, std = wanted["mean"], wanted["std"]
    if wanted["input_space"] != "RGB" or len(mean) != 3:
        raise InputError(
            f"--weights: {encoder} wants images that are not RGB ({wanted['input_space']}), which "
            "denseloss does not make; choose another encoder"
        )
    # Mean and deviation are of intensities up to the range's end.
    top = float(wanted["input_range"][-1])
    mean, std = [m / top for m in mean], [s / top for s in std]
    close = all(abs(a - b) < 1e-3 for a, b in zip((*mean, *std), (*MEAN, *STD), strict=True))
    if close:
        return ()
    network.normalise_to(mean, std)
    told = " and ".join("/".join(f"{v:.3g}" for v in values) for values in (mean, std))
    return (
        f"{encoder} wants mean and deviation {told}, and gets them; usual are those of ImageNet",
    )


# ------------------------------------------------------------------------ the user's own


def _from_code(spec: str, *, num_outputs: int) -> Segmenter:
    try:
        make = load(spec)
    except UserCodeError as error:
        raise InputError(f"--model {spec}: {error}") from error
    if not callable(make):
        raise InputError(
            f"--model {spec}: must be callable as (in_channels, num_outputs), got "
            f"{type(make).__name__}"
        )
    call = f"{spec.rpartition(':')[2]}(3, {num_outputs})"
    try:
        network = make(3, num_outputs)
    except Exception as error:
        raise InputError(f"--model {spec}: {call} raised {said_by(error)}") from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"--model {spec}: {call} must return a torch.nn.Module, got {type(network).__name__}"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(f"--model {spec}: {call} returned a Module without parameters to train")
    return Segmenter(
        network, num_outputs=num_outputs, divisor=_USER_STRIDE, smallest=2 * _USER_STRIDE
    )


def try_out(
    network: Segmenter, spec: str, *, num_outputs: int, square: int, image: tuple[int, int]
) -> None:
    """Run a network of the user's own, so that what is wrong with it is told before training.

    Neither its weights nor its buffers nor torch's generator are changed.

    Args:
        network: What `build_model` gave.
        spec: What it was made of.
        num_outputs: Channels that its logits must have.
        square: Side of the training squares.
        image: (height, width) of an image that is validated on.

    Raises:
        InputError: It raises, or its logits are not as they must be.
    """
    before = {name: value.clone() for name, value in network.state_dict().items()}
    mode = network.training
    with torch.random.fork_rng(devices=[]):
        for training, size, what in (
            (True, (square, square), f"training squares of {square} pixels"),
            (False, image, f"images of {image[1]}x{image[0]} pixels"),
        ):
            network.train(training)
            padded = network.padded(torch.randn(2 if training else 1, 3, *size))
            height, width = padded.shape[-2:]
            tried = f"{what}, tried with float32[{len(padded)}, 3, {height}, {width}]"
            try:
                with torch.set_grad_enabled(training):
                    output = network.network(padded)
            except Exception as error:
                raise InputError(
                    f"--model {spec}: does not work for {tried}: it raised {said_by(error)}"
                ) from error
            wrong = _wrong_outputs(output, padded, num_outputs, training=training)
            if wrong is not None:
                raise InputError(f"--model {spec}: {wrong} ({tried})")
    network.train(mode)
    network.load_state_dict(before)


def _kind(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(str, output))}"
    empty = isinstance(output, list | tuple)
    return f"an empty {type(output).__name__}" if empty else type(output).__name__


def _wrong_outputs(output: Any, image: Tensor, num_outputs: int, *, training: bool) -> str | None:
    """Return what is wrong with a network's output, None where it is as it must be."""
    must = f"must give logits float[{len(image)}, {num_outputs}, h, w], or a list of such"
    if not isinstance(output, Tensor | list | tuple) or len(output) == 0:
        return f"{must}, got {_kind(output)}"
    outputs = [output] if isinstance(output, Tensor) else list(output)
    previous = image.shape[-2:]
    for place, logits in enumerate(outputs):
        at = "" if isinstance(output, Tensor) else f" at place {place}"
        if not isinstance(logits, Tensor):
            return f"{must}, got {type(logits).__name__}{at}"
        got = f"got {str(logits.dtype).removeprefix('torch.')}{list(logits.shape)}{at}"
        if logits.ndim != 4 or not logits.is_floating_point() or len(logits) != len(image):
            return f"{must}, {got}"
        if logits.shape[1] != num_outputs:
            return f"{must}, {got}: {logits.shape[1]} channels instead of {num_outputs}"
        if min(logits.shape[-2:]) < 1:
            return f"{must}, {got}"
        if any(now > before for now, before in zip(logits.shape[-2:], previous, strict=True)):
            larger = "the image" if place == 0 else "those before; give the largest first"
            return f"{must}, {got}, which is larger than {larger}"
        if training and not logits.requires_grad:
            return f"its logits{at} have no gradient; do not detach them, and leave no_grad out"
        previous = logits.shape[-2:]
    return None


def _cut(logits: Tensor, padded: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Remove the prediction for the padding, from logits of any fraction of the padded size."""
    height, width = (
        -(-want * side // full)
        for want, side, full in zip(wanted, logits.shape[-2:], padded, strict=True)
    )
    return logits[..., :height, :width]
