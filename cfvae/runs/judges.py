"""Who looks at images: classifiers that come with the package, one of your own, or Inception."""

import dataclasses
import importlib
import types
import typing
import unicodedata
from pathlib import Path

import torch
from torch import nn

from ..core import CfvaeError, check, to_uint8
from ..data import FACTORS, ImageDataset
from ..evaluation import (
    Classifier,
    PhotoClassifier,
    features,
    load_classifier,
    predict,
    resize,
    shipped_classifier,
)
from ..latents import weights_fingerprint

PHOTO_JUDGES = {  # two networks that share no training: neither can be pleased without pleasing the data
    "cifar10-classifier": "trained on the ten labels of CIFAR-10",
    "tiny-imagenet-classifier": "trained on the labels of Tiny-ImageNet: its features were learned elsewhere",
}
ANSWERS = {  # class names of the shipped classifiers, in the order of their answers
    "shapes-classifier": FACTORS["class"],
    "cifar10-classifier": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
}
INCEPTION_WEIGHTS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
WAY_OUT = "use --features own, or --features FILE.pth with Inception's weights"


@dataclasses.dataclass(frozen=True)
class Judge:
    "A network that looks at images. Nothing is ever trained against it."

    name: str  # as tables have it
    about: str  # what it learned from
    see: typing.Callable[[torch.Tensor], torch.Tensor]  # (n, 3, h, h) in [-1, 1] -> features (n, d)
    classifier: Classifier | PhotoClassifier | None = None  # None: it names no classes
    answers: tuple[str, ...] = ()  # the names of its classes; empty: not known
    weights: str = ""  # digest of what it learned

    def recognises(
        self,
        images: torch.Tensor,  # (n, 3, h, h) in [-1, 1]
        names: typing.Sequence[str] | None,  # the class that each was asked to show
    ) -> torch.Tensor | None:
        "Which images show their class (13.1), (n,) of 0 and 1; None where the judge knows other classes."
        known, asked = _composed(self.answers), _composed(names or ())
        if self.classifier is None or not asked or not set(asked) <= set(known):
            return None
        expected = torch.tensor([known.index(name) for name in asked])
        fitting = resize(images.clamp(-1, 1), self.classifier.config.size)
        return (predict(self.classifier, fitting) == expected).float()


def _composed(names: typing.Sequence[str]) -> list[str]:
    "Either way to code an accent is right."
    return [unicodedata.normalize("NFC", name) for name in names]


def find_judges(
    source: str,  # own: of the package; inception; a classifier's folder; or Inception's weights, .pth
    dataset: ImageDataset,  # what is judged
    device: torch.device,  # where to compute
) -> list[Judge]:
    "The judges of a data set, one or two. Raises `CfvaeError` where they cannot be had."
    if source == "own":
        shipped = ["shapes-classifier"] if is_shapes(dataset) else list(PHOTO_JUDGES)
        return [_shipped_judge(name, device) for name in shipped]
    if source == "inception":
        return [inception_judge(_fetch_inception(), device)]

    check_source(source)
    path = Path(source)
    return [_own_judge(path, dataset, device) if path.is_dir() else inception_judge(path, device)]


def check_source(
    source: str,  # as for `find_judges`
) -> None:
    "Raises `CfvaeError` for what names no judge, before there is anything to judge."
    path = Path(source)
    known = "use own, inception, a classifier's folder, or a .pth file of Inception's weights"
    named = source in ("own", "inception")
    check(named or path.exists(), f"--features is '{source}', and no file is called so: {known}")
    check(named or path.is_dir() or path.suffix == ".pth", f"--features is {path}: {known}")
    holds = named or not path.is_dir() or (path / "config.json").is_file()
    check(holds, f"--features is {path}, and that folder holds no classifier (no config.json): {known}")


def is_shapes(
    dataset: ImageDataset,  # any images
) -> bool:
    "Whether the images are `Shapes`."
    return dataset.name == "shapes" and dataset.classes == FACTORS["class"]


def _judge(
    name: str, about: str, classifier: Classifier | PhotoClassifier, answers: tuple[str, ...]
) -> Judge:
    def see(images: torch.Tensor) -> torch.Tensor:
        return features(classifier, images)

    return Judge(name, about, see, classifier, answers, weights_fingerprint(classifier))


def _shipped_judge(name: str, device: torch.device) -> Judge:
    about = PHOTO_JUDGES.get(name, "trained on pictures of Shapes")
    return _judge(name, about, shipped_classifier(name).to(device), ANSWERS.get(name, ()))


def _own_judge(folder: Path, dataset: ImageDataset, device: torch.device) -> Judge:
    "A classifier from a folder. With as many answers as the data has classes, they are taken to be these."
    classifier = load_classifier(folder).to(device)
    same_count = classifier.config.num_classes == dataset.num_classes
    about = f"your own; its answers are taken for the classes of {dataset.name}" if same_count else "your own"
    return _judge(folder.resolve().name, about, classifier, dataset.classes if same_count else ())


# --- Inception


def _import_inception() -> types.ModuleType:
    try:
        return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError:
        raise CfvaeError(
            "Inception's features need the torch-fidelity library: pip install 'cfvae[evaluation]', "
            "or use --features own"
        ) from None


def _fetch_inception() -> Path:
    "Inception's weights, downloaded once; the name holds the first digits of their checksum."
    _import_inception()  # nothing is fetched that cannot be used
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(INCEPTION_WEIGHTS).name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checksum = path.stem.rpartition("-")[2]
        torch.hub.download_url_to_file(INCEPTION_WEIGHTS, str(path), checksum, progress=False)
    except Exception as error:  # as varied as the ways in which a network can fail
        reason = f"{type(error).__name__}: {error}"[:200]
        raise CfvaeError(f"Inception's weights could not be fetched ({reason}): {WAY_OUT}") from None
    return path


def inception_judge(
    weights: Path,  # torch-fidelity's .pth file
    device: torch.device,  # where to compute
) -> Judge:
    "Inception of 2015 as FID and KID mean it: its 2048 pooled features. Raises `CfvaeError` without it."
    library = _import_inception()
    try:
        torch.load(weights, weights_only=True)  # the library itself would run what a pickle says
        network: nn.Module = library.FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(weights)
        )
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        message = f"{weights} holds no weights of Inception ({reason})"
        raise CfvaeError(f"{message}: remove it if it was fetched by cfvae, or {WAY_OUT}") from None
    network.to(device)

    @torch.no_grad()
    def see(images: torch.Tensor) -> torch.Tensor:
        parts = [network(to_uint8(part.to(device)))[0].cpu() for part in images.split(50)]
        return torch.cat(parts)

    about = "trained on ImageNet in 2015; its Frechet distance is the FID"
    return Judge("inception", about, see, weights=weights_fingerprint(network))
