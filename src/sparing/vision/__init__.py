"""Images and their classifiers: datasets, augmentation, networks, training that survives interruptions.

Needs the extra ``vision``.
"""

from sparing.errors import MissingExtraError as _MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise _MissingExtraError("torch", extra="vision", purpose="sparing.vision") from _error

from sparing.vision.augment import EpochSampler, random_crop, random_flip, stream_generator, to_float
from sparing.vision.classifier import train_classifier_
from sparing.vision.classifier_config import ClassifierTrainingConfig, EpochResult, TrainingResult
from sparing.vision.datasets import ImageDataset, load_cifar10, load_image_folder
from sparing.vision.digits import load_digits
from sparing.vision.inference import evaluate_classifier, logits_and_features, penultimate_features, predict
from sparing.vision.mobilenet import InvertedResidual, MobileNetV2, MobileNetV2Config, mobilenet_v2
from sparing.vision.resnet import (
    BasicBlock,
    Bottleneck,
    ResNet,
    ResNetConfig,
    resnet8,
    resnet18,
    resnet20,
    resnet50,
    resnet101,
)
from sparing.vision.steps import DistillationStep, TrainingStep
from sparing.vision.vgg import VGG, VGGConfig, vgg16, vgg16_bn
from sparing.vision.weights import Classifier, SavedClassifier, load_classifier, save_classifier

__all__ = [  # noqa: RUF022 - sorted as the tests want it, by letters
    "BasicBlock",
    "Bottleneck",
    "Classifier",
    "ClassifierTrainingConfig",
    "DistillationStep",
    "EpochResult",
    "EpochSampler",
    "ImageDataset",
    "InvertedResidual",
    "MobileNetV2",
    "MobileNetV2Config",
    "ResNet",
    "ResNetConfig",
    "SavedClassifier",
    "TrainingResult",
    "TrainingStep",
    "VGG",
    "VGGConfig",
    "evaluate_classifier",
    "load_cifar10",
    "load_classifier",
    "load_digits",
    "load_image_folder",
    "logits_and_features",
    "mobilenet_v2",
    "penultimate_features",
    "predict",
    "random_crop",
    "random_flip",
    "resnet101",
    "resnet18",
    "resnet20",
    "resnet50",
    "resnet8",
    "save_classifier",
    "stream_generator",
    "to_float",
    "train_classifier_",
    "vgg16",
    "vgg16_bn",
]
