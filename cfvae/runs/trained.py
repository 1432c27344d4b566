"""What came of the presets that were trained to their end."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Trained:
    "One training of both stages, and its model."

    hardware: str  # that it ran on
    minutes: float  # of both stages together
    result: str  # measured, in few words

    def __str__(self) -> str:
        return f"Trained in {self.minutes:g} min on {self.hardware}: {self.result}."


TRAINED = {  # the keys are those of `PRESETS`; a preset that is missing has not been trained to its end
    "shapes-demo": Trained(
        hardware="two cores of an AMD EPYC, in float32",
        minutes=6.4,
        result="autoencoder 28 dB; 43 % of samples recognised, 51 % guided",
    ),
    "shapes": Trained(
        hardware="one core of an AMD EPYC, in float32",
        minutes=115,
        result="autoencoder 34.9 dB; 82 % of samples recognised, 92 % guided",
    ),
    "cifar10": Trained(
        hardware="one H200, by a prototype of the recorded step",
        minutes=10,
        result="autoencoder 31.8 dB; 54 % of samples recognised, 84 % guided; tuned: 66 and 89 %",
    ),
}


def describe_training(
    name: str,  # of a preset
) -> str:
    "What its training took and gave, or that it was not trained."
    return str(TRAINED.get(name, "Not trained."))
