"""Networks that take an image of any size and give logits of that size."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denseloss.contract import nearest
from denseloss.data.errors import InputError

# Small on purpose: two losses can be compared within minutes, also without a GPU. The first stages
# are narrow because most of the time goes there, at full size.
DYNUNET_FILTERS = (8, 16, 32, 64, 128, 128)

# The smallest side an architecture takes, where it is more than two of its own strides.
_SMALLEST_SIDE = {"pan": 128}
_SMP_STRIDE = 32
_DPT_ENCODER = "tu-vit_base_patch16_224.augreg_in21k"


class Segmenter(nn.Module):
    """A network with the bookkeeping of sizes around it.

    Images are padded below and to the right, by repeating the border, until `network` takes them;
    what was predicted for the padding is cut off again. Logits that `network` gives at a smaller
    size, heads of deep supervision among them, keep their size: the loss brings them to the labels.
    """

    def __init__(self, network: nn.Module, *, divisor: int, smallest: int) -> None:
        super().__init__()
        self.network = network
        self.divisor = divisor
        self.smallest = smallest

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the logits, the largest first; only a network in training gives more than one."""
        size = image.shape[-2:]
        down, across = (max(self.smallest, -(-n // self.divisor) * self.divisor) - n for n in size)
        if down or across:
            image = F.pad(image, (0, across, 0, down), mode="replicate")
        output = self.network(image)
        outputs = [output] if isinstance(output, Tensor) else list(output)
        return [_cut(logits, image.shape[-2:], size) for logits in outputs]


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
        spec: "dynunet", or "smp:ARCH" or "smp:ARCH:ENCODER" for any architecture and encoder of
            segmentation-models-pytorch.
        num_outputs: Channels of the logits.
        deep_supervision: Whether the network also predicts at smaller sizes in training.

    Returns:
        The network. It draws its weights from torch's generator: seed that before.

    Raises:
        InputError: The name is not known, or what it needs is not installed.
    """
    family, _, rest = spec.partition(":")
    if family == "dynunet" and not rest:
        return _dynunet(num_outputs=num_outputs, deep_supervision=deep_supervision)
    if family != "smp" or not rest:
        raise InputError(
            f"--model {spec}: not a known model{_meant(spec, ['dynunet', 'smp'])}; "
            'use "dynunet" or "smp:ARCH:ENCODER", for example smp:DeepLabV3Plus:resnet18'
        )
    if deep_supervision:
        raise InputError(f"--deep-supervision: {spec} has no such heads; use --model dynunet")
    arch, _, encoder = rest.partition(":")
    return _from_smp(arch, encoder=encoder, num_outputs=num_outputs)


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
    return Segmenter(network, divisor=divisor, smallest=2 * divisor)


def _from_smp(arch: str, *, encoder: str, num_outputs: int) -> Segmenter:
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
    encoder = encoder or (_DPT_ENCODER if transformer else "resnet18")
    if not encoder.startswith("tu-") and encoder not in smp.encoders.encoders:
        raise InputError(
            f"--model smp:{arch}:{encoder}: no such encoder{_meant(encoder, smp.encoders.encoders)}"
        )
    # Without this, a vision transformer takes only images of the size it was made for.
    options = {"dynamic_img_size": True} if transformer else {}
    try:
        network = cls(encoder, encoder_weights=None, in_channels=3, classes=num_outputs, **options)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--model smp:{arch}:{encoder} cannot be built: {reason}") from error
    smallest = _SMALLEST_SIDE.get(arch.lower(), 2 * _SMP_STRIDE)
    return Segmenter(network, divisor=_SMP_STRIDE, smallest=smallest)


def _cut(logits: Tensor, padded: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Remove the prediction for the padding, from logits of any fraction of the padded size."""
    height, width = (
        -(-want * side // full)
        for want, side, full in zip(wanted, logits.shape[-2:], padded, strict=True)
    )
    return logits[..., :height, :width]
