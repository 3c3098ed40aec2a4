"""Distil with LightlyTrain: IMAGES TEACHER_WEIGHTS OUT MINUTES. Prints what it cannot do."""

import json
import sys

import lightly_train
from lightly_train._methods.distillation.distillation import get_teacher

if __name__ == "__main__":  # it starts processes
    images, weights, out, minutes = sys.argv[1:]
    try:
        # Its own interface for a teacher by name; weights are read into that network only.
        get_teacher("torchvision/mobilenet_v2", num_input_channels=3, teacher_weights=weights)
    except AssertionError:
        names = sorted({name.split("/")[0] for name in lightly_train.list_models()})
        reason = "takes no teacher but DINOv2 and DINOv3: a MobileNetV2 is refused by an assertion"
        print(json.dumps({"left_out": reason, "students_of": names}))
        raise SystemExit from None
    lightly_train.pretrain(
        out=out,
        data=images,
        model="timm/tf_efficientnet_lite0",
        method="distillationv1",
        method_args={"teacher": "torchvision/mobilenet_v2", "teacher_weights": weights},
        trainer_args={"max_time": {"minutes": float(minutes)}},
    )
    print(json.dumps({"student": out}))
