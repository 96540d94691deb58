"""A small training plan with everything decided."""

from denseloss.train.plan import TrainPlan


def trial_plan(**changed: object) -> TrainPlan:
    values: dict[str, object] = {
        "data": "synthetic:blobs",
        "task": "segmentation",
        "options": {},
        "loss": "dice",
        "seed": 0,
        "split_seed": 0,
        "val_share": 0.2,
        "test_share": 0.2,
        "steps": 2,
        "val_every": 2,
        "minutes": 0.0,
        "patience": 0,
        "size": 32,
        "batch_size": 2,
        "accumulate": 1,
        "lr": 0.01,
        "weight_decay": 1e-4,
        "average": 0.0,
        "model": "dynunet",
        "weights": "",
        "weights_digest": "",
        "accelerator": "cpu",
        "devices": "1",
        "precision": "32-true",
        "threads": 1,
        "workers": 0,
        "logger": "none",
    }
    return TrainPlan(**{**values, **changed})  # type: ignore[arg-type]
