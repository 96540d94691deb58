"""Draw the README's picture: what each loss asks of the same wrong prediction.

    python docs/picture.py

One synthetic vessel image, one imperfect prediction, and for each loss the gradient at every
pixel: purple where it asks for more vessel, orange where it asks for less.
"""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from denseloss import functional as L
from denseloss.tasks.segmentation import open_data

LOSSES = {
    "binary_cross_entropy": L.binary_cross_entropy_loss,
    "binary_focal": L.binary_focal_loss,
    "binary_dice": L.binary_dice_loss,
    "binary_tversky(alpha=0.2, beta=0.8)": lambda z, t: L.binary_tversky_loss(
        z, t, alpha=0.2, beta=0.8
    ),
    "structure": L.structure_loss,
}


def main() -> None:
    data = open_data("synthetic:vessels?n=8&size=128&seed=7")
    image, mask = data.read(data.train[0])
    target = (mask == 1).float()[None, None]
    # A network that sees thick vessels, loses the thin ones and imagines a few.
    g = torch.Generator().manual_seed(1)
    noise = F.interpolate(torch.randn(1, 1, 16, 16, generator=g), size=128, mode="bicubic")
    soft = F.avg_pool2d(target, 5, stride=1, padding=2)
    logits = 9 * (soft - 0.55) + 0.9 * noise

    figure, axes = plt.subplots(2, 4, figsize=(10, 5.3), layout="constrained")
    axes = axes.flatten()
    axes[0].imshow(image.permute(1, 2, 0))
    axes[0].set_title("image", fontsize=9)
    axes[1].imshow(target[0, 0], cmap="gray")
    axes[1].set_title("truth", fontsize=9)
    axes[2].imshow(logits.sigmoid()[0, 0], cmap="gray", vmin=0, vmax=1)
    axes[2].set_title("prediction", fontsize=9)
    for axis, (name, loss) in zip(axes[3:], LOSSES.items(), strict=True):
        z = logits.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(z, target), z)
        ask = -grad[0, 0]
        scale = ask.abs().quantile(0.995)
        axis.imshow(ask / scale, cmap="PuOr", vmin=-1, vmax=1)
        axis.set_title(name.replace("(", "\n("), fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(
        "What each loss asks of the same prediction (purple: more, orange: less)", fontsize=10
    )
    figure.savefig(Path(__file__).parent / "gradients.png", dpi=110)


if __name__ == "__main__":
    main()
