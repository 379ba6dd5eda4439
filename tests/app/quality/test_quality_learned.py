"""LPIPS and CLIP score, with small or random weights that the tests write themselves."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchmetrics")

import numpy as np
import torch

from hetcache.quality.clip_score import ClipScore, clip_score
from hetcache.quality.lpips import Lpips, lpips
from hetcache.quality.measure import measure_quality
from hetcache.quality.metric import QualityTools, Value
from hetcache_core.errors import ConfigError

SHAPE = (3, 64, 80, 3)

PROMPT = "a red ball"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        pytest.fail(f"a metric asked the network for {given}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def video(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


PUBLISHED = {
    "alex": ("alexnet", "AlexNet_Weights"),
    "vgg": ("vgg16", "VGG16_Weights"),
    "squeeze": ("squeezenet1_1", "SqueezeNet1_1_Weights"),
}


def backbone(folder: Path, kind: str) -> Path:
    """Write random weights as torchvision publishes its own, without the classifier."""
    models = pytest.importorskip("torchvision.models")
    model, weights = PUBLISHED[kind]
    torch.manual_seed(0)
    with torch.device("meta"):
        network = getattr(models, model)(weights=None)
    features = network.features.to_empty(device="cpu")
    for values in features.parameters():
        torch.nn.init.normal_(values, std=0.05)
    url = getattr(models, weights).DEFAULT.url
    path = folder / "checkpoints" / Path(url).name
    path.parent.mkdir()
    torch.save({f"features.{name}": v for name, v in features.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("kind", ["alex", "squeeze", "vgg"])
def test_lpips_is_that_of_torchmetrics_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """Given the file where torchvision keeps what it downloads, torchmetrics does without us."""
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    path = backbone(tmp_path, kind)
    result, wanted = video(0), video(1)
    found = lpips(result, wanted, QualityTools(lpips=path))

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    load = torch.nn.Module.load_state_dict
    monkeypatch.setattr(  # the classifier, which is not in the file, is not used either
        torch.nn.Module, "load_state_dict", lambda self, state, *_, **__: load(self, state, False)
    )
    pictures = [
        torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 for frames in (result, wanted)
    ]
    expected = learned_perceptual_image_patch_similarity(*pictures, net_type=kind, normalize=True)
    assert found.value == pytest.approx(float(expected), rel=1e-5)
    assert found.value > 0


def test_lpips_of_identical_videos_is_nothing(tmp_path: Path) -> None:
    tools = QualityTools(lpips=backbone(tmp_path, "squeeze"))
    assert lpips(video(), video(), tools) == Value(value=0.0)


def test_lpips_needs_room_for_its_network(tmp_path: Path) -> None:
    tools = QualityTools(lpips=backbone(tmp_path, "squeeze"))
    small = video()[:, :31]
    assert lpips(small, small, tools) == Value(value=None, note="needs 32 pixels a side")


@pytest.mark.parametrize("kind", ["alex", "squeeze", "vgg"])
def test_lpips_takes_frames_of_the_smallest_size(tmp_path: Path, kind: str) -> None:
    tools = QualityTools(lpips=backbone(tmp_path, kind))
    small = video()[:, :32, :32]
    assert lpips(small, small, tools).value == 0


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    noise, other = tmp_path / "noise.pth", tmp_path / "other.pth"
    noise.write_bytes(b"noise")
    torch.save({"conv.weight": torch.zeros(3)}, other)
    for path, said in (
        (noise, "it is no file of weights"),
        (other, "holds neither AlexNet's"),
        (tmp_path / "nowhere.pth", "cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError) as caught:
            Lpips().check(QualityTools(lpips=path))
        assert str(caught.value).startswith("--lpips: ")
        assert said in str(caught.value)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "run",))

    torch.save({"features.0.weight": Code()}, tmp_path / "code.pth")
    with pytest.raises(ConfigError, match="it is no file of weights"):
        Lpips().check(QualityTools(lpips=tmp_path / "code.pth"))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with random weights, which reads letters, and one that sees the opposite."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens = [*words, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )
    size = {"height": 32, "width": 32}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    processor = transformers.CLIPProcessor(images, tokenizer)
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text = {
        "vocab_size": len(tokens), "max_position_embeddings": 16, "num_attention_heads": 2,
        "bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, **shared,
    }  # fmt: skip
    sight = {"image_size": 32, "patch_size": 8, "num_attention_heads": 2, **shared}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=sight, projection_dim=8)
    model = transformers.CLIPModel(config)
    for place in (folder, folder / "opposite"):
        processor.save_pretrained(place)
        model.save_pretrained(place)
        model.visual_projection.weight.data.neg_()
    return folder


def test_the_clip_score_is_the_cosine_between_frames_and_prompt(clip_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    found = clip_score(video(), PROMPT, QualityTools(clip=clip_folder))

    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(clip_folder)
    frames = list(torch.from_numpy(video()).permute(0, 3, 1, 2))
    with torch.inference_mode():
        inputs = processor(text=[PROMPT], images=frames, return_tensors="pt", padding=True)
        out = model(**inputs)
        cosines = (out.image_embeds @ out.text_embeds.T)[:, 0]
    cosine = 100 * float(cosines.mean())
    assert abs(cosine) > 1
    assert found.value == pytest.approx(max(0.0, cosine), abs=1e-3)
    opposite = clip_score(video(), PROMPT, QualityTools(clip=clip_folder / "opposite"))
    assert opposite.value == pytest.approx(max(0.0, -cosine), abs=1e-3)
    assert found.note == opposite.note == ""
    again = measure_quality(
        [ClipScore()],
        video(), mask=np.ones(SHAPE[:3], bool), token_pixels=4, prompt=PROMPT,
        tools=QualityTools(clip=clip_folder),
    )  # fmt: skip
    assert again["clip_score"] == found


def test_a_prompt_that_is_too_long_is_said_to_be_cut(clip_folder: Path) -> None:
    found = clip_score(video(), PROMPT * 4, QualityTools(clip=clip_folder))
    assert found.note == "prompt cut"


def test_a_folder_without_clip_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "clip"}')
    for path, said in ((tmp_path, "it has no config.json"), (broken, "holds no CLIP model")):
        with pytest.raises(ConfigError) as caught:
            ClipScore().check(QualityTools(clip=path))
        assert str(caught.value).startswith("--clip: ")
        assert said in str(caught.value)


def test_the_clip_score_without_transformers_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchmetrics.multimodal

    (tmp_path / "config.json").write_text("{}")

    def without(**_: Any) -> None:
        raise ModuleNotFoundError("`CLIPScore` metric requires `transformers`")

    monkeypatch.setattr(torchmetrics.multimodal, "CLIPScore", without)
    with pytest.raises(ConfigError, match="pip install transformers"):
        ClipScore().check(QualityTools(clip=tmp_path))
