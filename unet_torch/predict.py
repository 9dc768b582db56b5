import numpy as np
import torch

from unet_spec import prediction
from unet_torch.model import UNet


def predict(model: UNet, image: np.ndarray) -> np.ndarray:
    """Predict the class of every pixel of one image of any size: (h, w) integers.

    The image is mirrored at its borders to a size that the net takes, and the mask has its own.
    `unet_spec.prediction` says how large images are cut.

    Args:
        model: its `preprocessing` turns the image into the input; it runs in inference mode
            and is left in the mode that it was in.
        image: (h, w) or (h, w, c), any integer or float type; sizes in pixels.

    Raises:
        InputError: the image has other axes or channels, or holds NaN or infinite values.
    """
    like = model.out.weight

    @torch.no_grad()
    def forward(x: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(x).permute(0, 3, 1, 2).to(like)
        return model(batch).permute(0, 2, 3, 1).float().cpu().numpy()

    was_training = model.training
    model.eval()
    try:
        return prediction.predict(
            forward, image, config=model.config, preprocessing=model.preprocessing
        )
    finally:
        model.train(was_training)
