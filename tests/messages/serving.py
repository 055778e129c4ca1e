"""Messages of a served model."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from torch import nn

from finetune import FineTuner
from finetune.serve import create_app
from tests.messages.material import case, error


def small(**options: object) -> FineTuner:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return FineTuner(model, device="cpu", loss="cross_entropy", **options)  # type: ignore[arg-type]


@case("No preprocessing is known, so how a file becomes an input of the model is not known either. Train on images")
def served_without_preprocessing(tmp: Path) -> str:
    said = error(lambda: create_app(small()))
    client = create_app(small(preprocessing={"crop_size": 16})).test_client()
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG")
    assert client.post("/api/predict", data=file.getvalue(), content_type="image/png").status_code == 200
    return said


@case("This name is not one of the server's. Start it with --allow-host")
def served_by_an_unknown_name(tmp: Path) -> str:
    tuner, headers = small(preprocessing={"crop_size": 16}), {"Host": "dogs.example"}
    said = str(create_app(tuner).test_client().get("/health", headers=headers).get_json()["error"]["message"])
    assert create_app(tuner, hosts=["dogs.example"]).test_client().get("/health", headers=headers).status_code == 200
    return said
