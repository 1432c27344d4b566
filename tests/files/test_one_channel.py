"Codes of a single channel are stored and measured like others."

import pytest
import torch

from cfvae.autoencoder import Autoencoder, AutoencoderConfig
from cfvae.data import Shapes
from cfvae.files.codes import encode_dataset


def test_codes_of_one_channel(tmp_path):
    torch.manual_seed(0)
    sizes = AutoencoderConfig(size=8, widths=(8,), patch=2, latent_channels=1, groups=4)
    images = Shapes(6, size=8)
    latents = encode_dataset(Autoencoder(sizes), images, tmp_path, progress=False)
    codes = Autoencoder.encode(autoencoder_of_seed_0(sizes), images.batch(range(6))[0]).detach()
    assert latents.batch(range(6))[0].shape == codes.shape == (6, 1, 4, 4)
    assert latents.scaler.shift.item() == pytest.approx(codes.mean().item(), abs=1e-3)
    assert latents.scaler.scale.item() == pytest.approx(codes.std(correction=0).item(), rel=1e-2)


def autoencoder_of_seed_0(sizes: AutoencoderConfig) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(sizes)
