"""The example workflows: both formats agree, and ComfyUI's own executor runs them where one is named."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from hetcache_comfyui import headless
from hetcache_comfyui.nodes import NODE_CLASS_MAPPINGS, HetCache

FOLDER = Path(__file__).parents[1] / "example_workflows"
NAMES = ["wan_vace_edit", "wan_vace_compare"]
each = pytest.mark.parametrize("name", NAMES)
on_comfyui = pytest.mark.skipif(
    headless.checkout() is None, reason=f"{headless.CHECKOUT} names no checkout"
)

SEEDS = {"seed", "noise_seed"}
"""Widgets behind which the browser keeps one more: what becomes of the seed after a run."""


def read(name: str, folder: str = "") -> Any:
    return json.loads((FOLDER / folder / f"{name}.json").read_text(encoding="utf-8"))


def to_api(flow: dict[str, Any]) -> dict[str, Any]:
    """Convert the browser's format as the browser does."""
    links = {link[0]: link for link in flow["links"]}
    prompt = {}
    for node in flow["nodes"]:
        values, inputs = iter(node["widgets_values"]), {}
        for field in node["inputs"]:
            if "widget" in field:
                inputs[field["name"]] = next(values)
                if field["name"] in SEEDS:
                    next(values)
            if field["link"] is not None:
                _, source, slot, target, place, kind = links[field["link"]]
                assert (target, node["inputs"][place]) == (node["id"], field)
                assert field["type"] in {kind, "*"}
                inputs[field["name"]] = [str(source), slot]
        assert list(values) == []
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


@each
def test_the_browsers_format_and_the_apis_are_the_same_workflow(name: str) -> None:
    flow, api = read(name), read(name, "api")
    unnamed = {key: {k: v for k, v in node.items() if k != "_meta"} for key, node in api.items()}
    assert to_api(flow) == unnamed
    by_id = {node["id"]: node for node in flow["nodes"]}
    for number, source, slot, *_ in flow["links"]:
        assert number in by_id[source]["outputs"][slot]["links"]
    assert max(by_id) == flow["last_node_id"]
    assert len(flow["links"]) == flow["last_link_id"]


@each
def test_the_nodes_get_what_they_take(name: str) -> None:
    found = set()
    for node in read(name, "api").values():
        kind = NODE_CLASS_MAPPINGS.get(node["class_type"])
        if kind is None:
            continue
        found.add(node["class_type"])
        fields = kind.INPUT_TYPES()
        assert fields["required"].keys() <= node["inputs"].keys()
        assert node["inputs"].keys() <= {**fields["required"], **fields.get("optional", {})}.keys()
        for field, value in node["inputs"].items():
            allowed = {**fields["required"], **fields.get("optional", {})}[field][0]
            assert not isinstance(allowed, list) or value in allowed
    assert {"HetCache", "HetCacheTrace"} <= found


class SmallVae:
    """Squeezes pictures to latents by their mean, and back."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        clip = pixels.movedim(-1, 0)[None]  # (1, 3, F, H, W)
        frames = torch.cat([clip[:, :, :1], clip[:, :, 1:].unflatten(2, (-1, 4)).mean(3)], dim=2)
        small = torch.nn.functional.avg_pool3d(frames, (1, 8, 8))
        return small.repeat(1, 6, 1, 1, 1)[:, :16]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        counts = torch.tensor([1, *[4] * (latents.shape[2] - 1)])
        frames = latents[:, :3].repeat_interleave(counts, dim=2)
        large = torch.nn.functional.interpolate(frames, scale_factor=(1, 8, 8))
        return large.sigmoid().movedim(1, -1)  # (1, F, H, W, 3)


class SmallParts:
    """Stands for the loaders: a small random model, two prompts and a codec."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "VAE")
    FUNCTION = "load"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {}}

    def load(self) -> tuple[Any, ...]:
        prompts = [[[row[0][0], {}]] for row in headless.conditionings("wan", 0)]
        return headless.patcher("wan", 0), *prompts, SmallVae()


LOADED = {"UNETLoader": 0, "VAELoader": 3}
"""Loaders, and what of the small parts stands for them."""

PROMPTS = {"9": 1, "10": 2}
"""Prompts likewise, by their nodes."""


def small(name: str, **hetcache: Any) -> dict[str, Any]:
    """Take a workflow at a small size, with small parts."""
    prompt = read(name, "api")
    gone = {
        key: LOADED[node["class_type"]]
        for key, node in prompt.items()
        if node["class_type"] in LOADED
    } | PROMPTS
    kept = {
        key: node
        for key, node in prompt.items()
        if key not in gone and node["class_type"] != "CLIPLoader"
    }
    for node in kept.values():
        for field, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in gone:
                node["inputs"][field] = ["parts", gone[value[0]]]
        if node["class_type"] == "WanVaceToVideo":
            node["inputs"] |= {"width": 64, "height": 48, "length": 9}
        elif node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 12
        elif node["class_type"] == "HetCache":
            node["inputs"] |= hetcache
    return {"parts": {"class_type": "SmallParts", "inputs": {}}, **kept}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Start ComfyUI with this folder among its nodes, and two clips among its inputs."""
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "custom_nodes").mkdir()
    (folder / "custom_nodes" / "hetcache-comfyui").symlink_to(FOLDER.parent)
    headless.start(folder)
    import folder_paths
    import nodes

    folder_paths.folder_names_and_paths["custom_nodes"] = (
        [str(folder / "custom_nodes")],
        set(),
    )
    for kind in ("input", "output", "temp"):
        (folder / kind).mkdir(exist_ok=True)
        getattr(folder_paths, f"set_{kind}_directory")(str(folder / kind))
    headless.load_nodes(extra=True)
    nodes.NODE_CLASS_MAPPINGS["SmallParts"] = SmallParts
    clip = torch.rand(9, 48, 64, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(9, 48, 64, 3)
    mask[:, 16:32, 24:48] = 1
    write(folder / "input" / "clip.mp4", clip)
    write(folder / "input" / "mask.mp4", mask)
    return folder


def write(path: Path, video: torch.Tensor) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(8))
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        for frame in (video * 255).byte().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def outputs(executor: Any) -> dict[str, Any]:
    assert executor.success, executor.status_messages
    found: dict[str, Any] = executor.history_result["outputs"]
    return found


@on_comfyui
def test_the_edit_runs_through_the_executor(base: Path) -> None:
    """From video files to a video file, with the mask of the workflow."""
    import nodes

    loaded = nodes.NODE_CLASS_MAPPINGS["HetCache"]
    assert loaded is HetCache  # that of this folder, loaded by ComfyUI
    found = outputs(headless.execute(small("wan_vace_edit", policy="hetcache"), "edit"))
    text = found["15"]["text"][0]
    assert "hetcache on comfy-wan" in text
    assert sum(line.startswith("step ") for line in text.splitlines()) == 12
    assert list((base / "output" / "video").glob("hetcache*.mp4"))


@on_comfyui
@pytest.mark.parametrize(("policy", "alike"), [("none", True), ("auto", False)])
def test_the_comparison_runs_through_the_executor(base: Path, policy: str, alike: bool) -> None:
    """With all steps computed, the video is the one without the node to the last bit."""
    flow = small("wan_vace_compare", policy=policy)
    found = outputs(headless.execute(flow, f"compare-{policy}"))
    lines = found["22"]["text"][0].splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["whole", "mask", "margin", "background"]
    assert all(("identical" in line or "no pixels" in line) == alike for line in lines[:2])
    pictures = [image["filename"] for image in found["23"]["images"]]
    assert len(pictures) == 5


@on_comfyui
@pytest.mark.parametrize("threshold", [0.1, 0.2])
def test_beside_easycache_at_equal_computed_steps(
    base: Path, threshold: float, record_property: pytest.RecordProperty
) -> None:
    """Root mean square distance of the latents to those with every step computed.

    The weights are random: whose pictures would be nearer is not told.
    """
    import nodes

    steps = 30

    def distance(model: Any) -> float:
        latents = headless.run(headless.guider("wan", 0, model), steps, "merged", 0)
        return float((latents - bare).square().mean().sqrt())

    bare = headless.run(headless.guider("wan", 0), steps, "merged", 0)
    easy = nodes.NODE_CLASS_MAPPINGS["EasyCache"]
    theirs = easy.execute(headless.patcher("wan", 0), threshold, 0.15, 0.95, False).result[0]
    calls: list[int] = []
    theirs.model.diffusion_model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    far = distance(theirs)
    ours, _ = HetCache().apply(
        model=headless.patcher("wan", 0),
        policy="auto",
        preset="none",
        speedup=steps / len(calls),
        quality=0.0,
        first_steps=0,
    )
    near = distance(ours)
    computed = ours.get_wrappers("outer_sample", "hetcache")[0].trace.totals().steps_full
    record_property("EasyCache", f"{len(calls)} of {steps} computed, distance {far:.4f}")
    record_property("hetcache", f"{computed} of {steps} computed, distance {near:.4f}")
    assert computed <= len(calls) < steps
    assert 0 < near < far
