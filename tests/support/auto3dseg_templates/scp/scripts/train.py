"""Train as the configuration says, and leave the score that algorithms are compared by."""

import sys
from pathlib import Path

import monai.bundle
import yaml
from infer import InferClass
from monai.metrics import DiceMetric
from monai.networks import one_hot
from monai.transforms import LoadImage

(config,) = (word.partition("=")[2].strip("'") for word in sys.argv if word.startswith("--config_file="))
monai.bundle.run(run_id="run", config_file=config)
inferer, score = InferClass([config]), DiceMetric(include_background=False)
for item in inferer.parser["validation"]:
    prediction, label = inferer.infer(item), LoadImage(ensure_channel_first=True)(item["label"])
    classes = len(prediction)
    score(one_hot(prediction.argmax(0)[None, None], classes), one_hot(label[None], classes))
result = [{"best_avg_dice_score": score.aggregate().item()}]
(Path(inferer.parser["folder"]) / "progress.yaml").write_text(yaml.safe_dump(result))
