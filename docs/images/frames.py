"""Draw docs/images/frames.png: python docs/images/frames.py"""

import tempfile
from pathlib import Path

from PIL import Image

from scp_models.data import find_subjects, get_task
from scp_models.phantoms import generate_wmh
from scp_models.report.frames import draw_frames


def main() -> None:
    task = get_task("wmh", None, {"frame": "foreground"})
    with tempfile.TemporaryDirectory() as folder:
        generate_wmh(Path(folder), 2, seed=0, size="small", progress=False)
        (picture,) = draw_frames(find_subjects(folder, task), task, Path(__file__).with_suffix(".png"))
    # Noise hardly compresses; a palette keeps the file small.
    Image.open(picture).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    main()
